// A persistent pool of threads for loops over crystals.
#pragma once

#include <stdint.h>

namespace druse {

int hardware_threads();

// Calls task(context, i) once for every i in [0, count), on up to n_threads threads (0: all cores), the caller's among
// them. Tasks are taken in ascending order. Concurrent callers are safe: one has the pool, the others run alone.
void parallel(int n_threads, int64_t count, void (*task)(void *, int64_t), void *context);

template <class Function>
void parallel(int n_threads, int64_t count, const Function &function) {
    parallel(
        n_threads, count,
        [](void *context, int64_t index) { (*static_cast<const Function *>(context))(index); },
        const_cast<void *>(static_cast<const void *>(&function)));
}

// The same over [0, total) in ranges of at least `grain`: function(begin, end).
template <class Function>
void parallel_ranges(int n_threads, int64_t total, int64_t grain, const Function &function) {
    const int64_t count = (total + grain - 1) / grain;
    parallel(n_threads, count, [&](int64_t index) {
        const int64_t begin = index * grain;
        function(begin, begin + grain < total ? begin + grain : total);
    });
}

}  // namespace druse
