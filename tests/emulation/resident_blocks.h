// The threads of an emulated kernel: fibers, with the barriers and copies that they wait for. See cuda_emulator.h.
#pragma once

#include <cuda_runtime_api.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace jointbert::emulator {

// The order in which threads run. Uneven: a random order in which some threads fall far behind.
enum class Schedule { kForward, kReverse, kRandom, kUneven };

struct Settings {
    Schedule schedule = Schedule::kForward;
    std::uint32_t seed = 0;
    // Blocks of an ordinary grid that are resident at the same time; more than 1 needs a kernel without __shared__
    // variables (dynamic shared memory only).
    unsigned resident_blocks = 1;
};

inline Settings& settings() {
    static Settings value;
    return value;
}

// Completed barriers: of a block, and of all resident blocks (a cluster's).
struct BarrierCounts {
    unsigned long blocks = 0, clusters = 0;
};
inline BarrierCounts& barrier_counts() {
    static BarrierCounts value;
    return value;
}

// The synchronisation that is left out, by its number in a copy of the sources that tests make; -1: none.
inline int& dropped_synchronisation() {
    static int index = -1;
    return index;
}

constexpr unsigned kWarp = 32;

struct FreeDeleter {
    void operator()(void* memory) const { std::free(memory); }
};

// Blocks that are resident at the same time: one, a cluster's, or a cooperative grid's; their threads and barriers.
class ResidentBlocks {
  public:
    static constexpr std::size_t kStackBytes = 128 << 10;
    static constexpr std::size_t kSlotBytes = 32;  // of a lane's value in an exchange
    static constexpr std::size_t kMaxSpins = 10'000'000;
    static constexpr unsigned kAwakeRounds = 256, kMaxAsleepRounds = 512;  // of an uneven schedule; awake: on average

    ResidentBlocks(unsigned first_block, unsigned blocks, dim3 grid, dim3 block, std::size_t shared_bytes,
                   const std::function<void()>& body)
        : body_(body),
          grid_(grid),
          block_(block),
          threads_(block.x * block.y * block.z),
          fibers_(blocks * threads_),
          blocks_(blocks),
          random_(settings().seed + first_block) {
        for (unsigned i = 0; i < blocks; ++i) {
            blocks_[i].index = first_block + i;
            blocks_[i].warps.resize((threads_ + kWarp - 1) / kWarp);
            blocks_[i].shared.reset(
                static_cast<char*>(std::aligned_alloc(128, (shared_bytes + 127) / 128 * 128 + 128)));
            std::memset(blocks_[i].shared.get(), 0xff, shared_bytes);  // NaN, so that reads of unwritten memory show
        }
    }

    void run() {
        current_blocks() = this;
        for (Fiber& fiber : fibers_) {
            fiber.stack.reset(new char[kStackBytes]);
            getcontext(&fiber.context);
            fiber.context.uc_stack.ss_sp = fiber.stack.get();
            fiber.context.uc_stack.ss_size = kStackBytes;
            fiber.context.uc_link = nullptr;
            makecontext(&fiber.context, &ResidentBlocks::entry, 0);
        }
        std::vector<unsigned> order(fibers_.size());
        for (unsigned i = 0; i < order.size(); ++i)
            order[i] = settings().schedule == Schedule::kReverse ? unsigned(order.size()) - 1 - i : i;
        while (done_ < fibers_.size()) {
            if (settings().schedule >= Schedule::kRandom) std::shuffle(order.begin(), order.end(), random_);
            bool moved = false;
            for (const unsigned i : order)
                if (fibers_[i].state == State::kReady) {
                    moved = true;
                    if (fibers_[i].asleep && --fibers_[i].asleep) continue;
                    if (settings().schedule == Schedule::kUneven && random_() % kAwakeRounds == 0)
                        fibers_[i].asleep = 1 + random_() % kMaxAsleepRounds;
                    else
                        resume(i);
                }
            if (!moved) throw std::runtime_error("emulator: a barrier that some threads never reach");
            if (spins_ > kMaxSpins) throw std::runtime_error("emulator: a loop that never ends");
        }
        current_blocks() = nullptr;
    }

    static ResidentBlocks& current() { return *current_blocks(); }
    unsigned thread() const { return current_ % threads_; }
    unsigned rank() const { return current_ / threads_; }
    char* shared(unsigned rank) { return blocks_[rank].shared.get(); }

    void block_barrier() {
        Block& block = blocks_[rank()];
        wait(State::kBlock);
        if (++block.waiting == threads_) {
            block.waiting = 0;
            ++barrier_counts().blocks;
            release(rank() * threads_, threads_);
        }
        yield();
    }

    // Of all resident blocks.
    void barrier() {
        wait(State::kCluster);
        if (++waiting_ == fibers_.size()) {
            waiting_ = 0;
            ++barrier_counts().clusters;
            release(0, unsigned(fibers_.size()));
        }
        yield();
    }

    void warp_barrier() {
        Warp& warp = this->warp();
        const unsigned first = thread() / kWarp * kWarp, lanes = std::min(kWarp, threads_ - first);
        wait(State::kWarp);
        if (++warp.waiting == lanes) {
            warp.waiting = 0;
            release(rank() * threads_ + first, lanes);
        }
        yield();
    }

    // The values of all lanes of the warp, kSlotBytes apart, in a buffer that is valid until the exchange after the
    // next.
    template <class T>
    const char* exchange(const T& value) {
        static_assert(sizeof(T) <= kSlotBytes);
        char* slots = warp().slots[fibers_[current_].exchanges++ & 1];
        std::memcpy(slots + thread() % kWarp * kSlotBytes, &value, sizeof(T));
        warp_barrier();
        return slots;
    }

    // Lets other threads run, in a loop that polls a value of another block.
    void spin() {
        ++spins_;  // run() checks it: an exception can not leave a fiber
        yield();
    }

    // cp.async and its groups: the copies happen when they are waited for, and no earlier.
    void cp_async(void* to, const void* from, std::size_t bytes) {
        fibers_[current_].copies.push_back({to, from, bytes, fibers_[current_].groups});
    }
    void cp_async_commit_group() { ++fibers_[current_].groups; }
    void cp_async_wait_group(unsigned pending) {
        Fiber& fiber = fibers_[current_];
        auto& copies = fiber.copies;
        while (!copies.empty() && copies.front().group + pending < fiber.groups) {
            std::memcpy(copies.front().to, copies.front().from, copies.front().bytes);
            copies.pop_front();
        }
    }

  private:
    enum class State { kReady, kBlock, kWarp, kCluster, kDone };
    struct Copy {
        void* to;
        const void* from;
        std::size_t bytes;
        unsigned group;
    };
    struct Fiber {
        ucontext_t context;
        std::unique_ptr<char[]> stack;
        State state = State::kReady;
        unsigned asleep = 0, exchanges = 0, groups = 0;
        std::deque<Copy> copies;
    };
    struct Warp {
        alignas(16) char slots[2][kWarp * kSlotBytes];
        unsigned waiting = 0;
    };
    struct Block {
        unsigned index = 0, waiting = 0;
        std::vector<Warp> warps;
        std::unique_ptr<char, FreeDeleter> shared;
    };

    static ResidentBlocks*& current_blocks() {
        static ResidentBlocks* blocks = nullptr;
        return blocks;
    }

    static void entry() {
        ResidentBlocks& blocks = current();
        blocks.finish_first_switch();
        blocks.body_();
        blocks.fibers_[blocks.current_].state = State::kDone;
        ++blocks.done_;
        blocks.yield();
    }

    Warp& warp() { return blocks_[rank()].warps[thread() / kWarp]; }
    void wait(State state) { fibers_[current_].state = state; }
    void release(unsigned first, unsigned count) {
        for (unsigned i = first; i < first + count; ++i) fibers_[i].state = State::kReady;
    }

    void resume(unsigned fiber);
    void yield();
    void finish_first_switch() {
#if defined(__SANITIZE_ADDRESS__)
        __sanitizer_finish_switch_fiber(nullptr, &main_bottom_, &main_size_);
#endif
    }

    const std::function<void()>& body_;
    dim3 grid_, block_;
    unsigned threads_;
    std::vector<Fiber> fibers_;
    std::vector<Block> blocks_;
    std::mt19937 random_;
    ucontext_t main_;
    unsigned current_ = 0;
    std::size_t waiting_ = 0, done_ = 0, spins_ = 0;
#if defined(__SANITIZE_ADDRESS__)
    const void* main_bottom_ = nullptr;
    std::size_t main_size_ = 0;
#endif
};

}  // namespace jointbert::emulator

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace jointbert::emulator {

inline void ResidentBlocks::resume(unsigned i) {
    current_ = i;
    const unsigned t = thread(), b = blocks_[rank()].index;
    threadIdx = uint3{t % block_.x, t / block_.x % block_.y, t / (block_.x * block_.y)};
    blockIdx = uint3{b % grid_.x, b / grid_.x % grid_.y, b / (grid_.x * grid_.y)};
    Fiber& fiber = fibers_[i];
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, fiber.stack.get(), kStackBytes);
#endif
    swapcontext(&main_, &fiber.context);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

inline void ResidentBlocks::yield() {
    Fiber& fiber = fibers_[current_];
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(fiber.state == State::kDone ? nullptr : &fake, main_bottom_, main_size_);
#endif
    swapcontext(&fiber.context, &main_);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, &main_bottom_, &main_size_);
#endif
}

}  // namespace jointbert::emulator
