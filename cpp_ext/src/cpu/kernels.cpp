// Compiled once for each instruction set, with DRUSE_ISA its namespace and name.
#include "dense_kernel.hpp"
#include "gemnet_kernel.hpp"
#include "geometry_kernel.hpp"
#include "noise_kernel.hpp"
#include "paths_kernel.hpp"
#include "symmetrise.hpp"

#define DRUSE_JOIN2(a, b) a##b
#define DRUSE_JOIN(a, b) DRUSE_JOIN2(a, b)

namespace druse {

const Kernels *DRUSE_JOIN(kernels_, DRUSE_ISA)() {
    static constexpr Kernels kernels = {DRUSE_ISA::graph,        DRUSE_ISA::normal,
                                        DRUSE_ISA::ddpm,         DRUSE_ISA::radial_basis,
                                        DRUSE_ISA::legendre,     DRUSE_ISA::force_sum,
                                        DRUSE_ISA::residual_mlp, DRUSE_ISA::path_sum,
                                        DRUSE_ISA::path_sum_gradient, DRUSE_ISA::triplet_sum,
                                        DRUSE_ISA::triplet_sum_gradient, DRUSE_ISA::gemnet};
    return &kernels;
}

}  // namespace druse
