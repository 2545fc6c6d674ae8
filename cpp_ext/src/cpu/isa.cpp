#include "cpu.hpp"
#include "dispatch.hpp"

namespace druse {
namespace cpu {
namespace {

// Named by the caller or not, a set is used only where the processor and the operating system have it.
const Kernels *available(int isa) {
#if defined(__x86_64__)
    if (isa == DRUSE_ISA_AVX512 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return kernels_avx512();
    if (isa == DRUSE_ISA_AVX2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("popcnt")) return kernels_avx2();
#endif
    return isa == DRUSE_ISA_BASELINE ? kernels_baseline() : nullptr;
}

}  // namespace

int best_isa() {
    static const int best = [] {
        int isa = DRUSE_ISA_AVX512;
        while (available(isa) == nullptr) --isa;
        return isa;
    }();
    return best;
}

bool isa_available(int isa) { return isa == DRUSE_ISA_BEST || available(isa) != nullptr; }

const Kernels &kernels(int isa) {
    return *available(isa == DRUSE_ISA_BEST ? best_isa() : isa);
}

}  // namespace cpu
}  // namespace druse
