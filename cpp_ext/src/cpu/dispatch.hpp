// The kernels of an instruction set.
#pragma once

#include "kernels.hpp"

namespace druse {
namespace cpu {

const Kernels &kernels(int isa);  // isa_available(isa) must hold

}  // namespace cpu
}  // namespace druse
