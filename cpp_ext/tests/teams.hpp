// Teams of threads for core/crystal_graph.hpp without a GPU.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

// One thread is a block, a warp and a lane.
struct TeamOfOne {
    int thread() const { return 0; }
    int threads() const { return 1; }
    int warp() const { return 0; }
    int warps() const { return 1; }
    int lane() const { return 0; }
    int lanes() const { return 1; }
    void sync() const {}
    void sync_warp() const {}
    void pause() const {}
    void join(uint32_t *word, uint32_t bits) const { *word |= bits; }
    uint32_t ballot(bool value) const { return value ? 1u : 0u; }
    uint32_t sum(uint32_t value) const { return value; }
    int64_t sum_wide(int64_t value) const { return value; }
    uint32_t least(uint32_t value) const { return value; }
    uint64_t least_wide(uint64_t value) const { return value; }
    int64_t pick(int64_t value, int) const { return value; }
    int64_t sum_before(int64_t) const { return 0; }
};

// Waits for all; what they wrote before is seen after, or, in `order` relaxed, is not: the thread sanitizer then reports
// every exchange through memory that no other barrier orders.
class Barrier {
  public:
    explicit Barrier(int count) : count_(count) {}
    void wait(bool ordered) {
        const auto order = ordered ? std::memory_order_acq_rel : std::memory_order_relaxed;
        const auto read = ordered ? std::memory_order_acquire : std::memory_order_relaxed;
        const auto write = ordered ? std::memory_order_release : std::memory_order_relaxed;
        const unsigned round = round_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, order) + 1 == count_) {
            arrived_.store(0, std::memory_order_relaxed);
            round_.store(round + 1, write);
        } else {
            while (round_.load(read) == round) std::this_thread::yield();
        }
    }

  private:
    const int count_;
    std::atomic<int> arrived_{0};
    std::atomic<unsigned> round_{0};
};

// A block of real threads. What lanes exchange goes through relaxed atomics, for on a GPU it orders nothing either.
struct Block {
    struct Warp {
        explicit Warp(int lanes) : memory(lanes), exchange(lanes), values(static_cast<size_t>(lanes)) {}
        Barrier memory, exchange;
        std::vector<std::atomic<uint64_t>> values;
    };
    Block(int warps, int lanes_) : lanes(lanes_), all(warps * lanes_) {
        for (int w = 0; w < warps; ++w) warp.push_back(std::make_unique<Warp>(lanes_));
    }
    const int lanes;
    Barrier all;
    std::vector<std::unique_ptr<Warp>> warp;
};

class TeamOfThreads {
  public:
    TeamOfThreads(Block *block, int thread) : block_(block), thread_(thread) {}
    int thread() const { return thread_; }
    int threads() const { return warps() * lanes(); }
    int warp() const { return thread_ / lanes(); }
    int warps() const { return static_cast<int>(block_->warp.size()); }
    int lane() const { return thread_ % lanes(); }
    int lanes() const { return block_->lanes; }
    void sync() const { block_->all.wait(true); }
    void sync_warp() const { mine().memory.wait(true); }
    void pause() const { std::this_thread::yield(); }
    void join(uint32_t *word, uint32_t bits) const { __atomic_fetch_or(word, bits, __ATOMIC_RELAXED); }
    uint32_t ballot(bool value) const {
        uint32_t found = 0;
        gather(value ? 1u : 0u, [&](int lane, uint64_t other) { found |= static_cast<uint32_t>(other) << lane; });
        return found;
    }
    uint32_t sum(uint32_t value) const { return static_cast<uint32_t>(sum_wide(value)); }
    int64_t sum_wide(int64_t value) const {
        int64_t total = 0;
        gather(static_cast<uint64_t>(value), [&](int, uint64_t other) { total += static_cast<int64_t>(other); });
        return total;
    }
    uint32_t least(uint32_t value) const { return static_cast<uint32_t>(least_wide(value)); }
    uint64_t least_wide(uint64_t value) const {
        gather(value, [&](int, uint64_t other) { value = other < value ? other : value; });
        return value;
    }
    int64_t pick(int64_t value, int from) const {
        int64_t picked = 0;
        gather(static_cast<uint64_t>(value), [&](int lane, uint64_t other) {
            if (lane == from) picked = static_cast<int64_t>(other);
        });
        return picked;
    }
    int64_t sum_before(int64_t value) const {
        int64_t total = 0;
        gather(static_cast<uint64_t>(value), [&](int other_lane, uint64_t other) {
            if (other_lane < lane()) total += static_cast<int64_t>(other);
        });
        return total;
    }

  private:
    Block::Warp &mine() const { return *block_->warp[static_cast<size_t>(warp())]; }

    template <class Take>
    void gather(uint64_t value, Take take) const {
        Block::Warp &w = mine();
        w.values[static_cast<size_t>(lane())].store(value, std::memory_order_relaxed);
        w.exchange.wait(false);
        for (int l = 0; l < lanes(); ++l) take(l, w.values[static_cast<size_t>(l)].load(std::memory_order_relaxed));
        w.exchange.wait(false);
    }

    Block *block_;
    int thread_;
};
