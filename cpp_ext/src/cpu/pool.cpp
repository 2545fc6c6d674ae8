#include "pool.hpp"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif
#if !defined(_WIN32)
#include <pthread.h>
#endif

namespace druse {
namespace {

constexpr int kMostThreads = 256;

struct Loop {
    void (*task)(void *, int64_t);
    void *context;
    int64_t count;
    std::atomic<int64_t> next{0};

    void run() {
        for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) task(context, i);
    }
};

class Pool {
  public:
    // False where another caller has the pool.
    bool run(int helpers, Loop &loop) {
        std::unique_lock<std::mutex> owner(owner_, std::try_to_lock);
        if (!owner.owns_lock()) return false;
        {
            std::lock_guard<std::mutex> lock(mutex_);
            while (static_cast<int>(threads_) < helpers) {
                try {
                    std::thread([this, index = threads_] { serve(index); }).detach();
                } catch (...) {  // no more threads to be had: go on with those there are
                    helpers = threads_;
                    break;
                }
                ++threads_;
            }
            loop_ = &loop;
            wanted_ = helpers;
            busy_ = helpers;
            ++generation_;
        }
        wake_.notify_all();
        loop.run();
        std::unique_lock<std::mutex> lock(mutex_);
        done_.wait(lock, [this] { return busy_ == 0; });
        loop_ = nullptr;
        return true;
    }

  private:
    void serve(int index) {
        uint64_t seen = 0;
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            wake_.wait(lock, [&] { return generation_ != seen; });
            seen = generation_;
            if (index >= wanted_ || loop_ == nullptr) continue;
            Loop *loop = loop_;
            lock.unlock();
            loop->run();
            lock.lock();
            if (--busy_ == 0) done_.notify_one();
        }
    }

    std::mutex owner_, mutex_;
    std::condition_variable wake_, done_;
    Loop *loop_ = nullptr;
    int threads_ = 0, wanted_ = 0, busy_ = 0;
    uint64_t generation_ = 0;
};

// Never destroyed: threads may outlive main. A forked child gets a new one, since no thread survives a fork.
std::atomic<Pool *> current{nullptr};

Pool *pool() {
    Pool *existing = current.load(std::memory_order_acquire);
    if (existing != nullptr) return existing;
    Pool *fresh = new (std::nothrow) Pool;
    if (fresh != nullptr && current.compare_exchange_strong(existing, fresh)) {
#if !defined(_WIN32)
        static std::atomic<bool> registered{false};
        if (!registered.exchange(true)) pthread_atfork(nullptr, nullptr, [] { current.store(nullptr); });
#endif
        return fresh;
    }
    delete fresh;
    return existing;
}

}  // namespace

int hardware_threads() {
#if defined(__linux__)
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) == 0 && CPU_COUNT(&allowed) > 0) return CPU_COUNT(&allowed);
#endif
    const unsigned count = std::thread::hardware_concurrency();
    return count > 0 ? static_cast<int>(count) : 1;
}

void parallel(int n_threads, int64_t count, void (*task)(void *, int64_t), void *context) {
    if (n_threads <= 0) n_threads = hardware_threads();
    if (n_threads > count) n_threads = static_cast<int>(count);
    if (n_threads > kMostThreads) n_threads = kMostThreads;
    Loop loop{task, context, count};
    Pool *helpers = n_threads > 1 ? pool() : nullptr;
    if (helpers == nullptr || !helpers->run(n_threads - 1, loop)) loop.run();
}

}  // namespace druse
