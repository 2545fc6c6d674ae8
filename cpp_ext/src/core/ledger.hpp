// Where in the batch's packed edges a crystal's begin, when crystals are built side by side.
#pragma once

#include "graph_pairs.hpp"

namespace druse {

// Where crystals say how many edges they have, and where they end. A word is 0 until then; its upper two bits say which.
constexpr uint64_t kLedgerCount = 1ull << 62, kLedgerUsed = 2ull << 62, kLedgerValue = kLedgerCount - 1;

DRUSE_TEAM uint64_t peek(const uint64_t *word) {
#if defined(__CUDA_ARCH__)
    return *static_cast<const volatile uint64_t *>(word);
#else
    return __atomic_load_n(word, __ATOMIC_RELAXED);
#endif
}

DRUSE_TEAM void post(uint64_t *word, uint64_t value) {
#if defined(__CUDA_ARCH__)
    *static_cast<volatile uint64_t *>(word) = value;
#else
    __atomic_store_n(word, value, __ATOMIC_RELAXED);
#endif
}

// Places of the batch's edges that the crystals before b use, found by one warp (Merrill and Garland's decoupled look-back):
// counts are summed back to the nearest crystal that knows where it ends. Where their sum does not fit, one of them has
// written nothing, and only the one before knows. Crystals must be begun in order.
template <class Team>
DRUSE_TEAM int64_t claim(const Team &team, uint64_t *ledger, int64_t b, int64_t count, int64_t capacity, bool *fits) {
    constexpr int kEach = 4;
    const int lanes = team.lanes(), lane = team.lane();
    int64_t before = 0;
    if (b > 0) {
        if (lane == 0) post(ledger + b, kLedgerCount | static_cast<uint64_t>(count));
        const uint32_t none = 0xffffffffu;
        uint32_t nearest = none;
        DRUSE_ROLLED
        for (int64_t end = b - 1; nearest == none;) {
            uint64_t words[kEach];
            for (int w = 0; w < kEach; ++w) {
                const int64_t other = end - lane - w * lanes;
                words[w] = other < 0 ? kLedgerUsed : peek(ledger + other);
            }
            for (int w = kEach - 1; w >= 0; --w)
                if ((words[w] & ~kLedgerValue) == kLedgerUsed) nearest = static_cast<uint32_t>(lane + w * lanes);
            nearest = team.least(nearest);
            bool silent = false;
            for (int w = 0; w < kEach; ++w)
                silent |= words[w] == 0 && static_cast<uint32_t>(lane + w * lanes) < nearest;
            if (team.ballot(silent) != 0) {
                nearest = none;
                team.pause();
                continue;
            }
            int64_t part = 0;
            for (int w = 0; w < kEach; ++w)
                if (static_cast<uint32_t>(lane + w * lanes) <= nearest)
                    part += static_cast<int64_t>(words[w] & kLedgerValue);
            before += team.sum_wide(part);
            end -= kEach * lanes;
        }
        if (before > capacity) {
            uint64_t word = 0;
            while ((word & ~kLedgerValue) != kLedgerUsed) {
                word = peek(ledger + b - 1);
                team.pause();
            }
            before = static_cast<int64_t>(word & kLedgerValue);
        }
    }
    *fits = count <= capacity - before;
    if (lane == 0) post(ledger + b, kLedgerUsed | static_cast<uint64_t>(before + (*fits ? count : 0)));
    return before;
}

}  // namespace druse
