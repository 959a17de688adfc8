// CUDA kernels on a CPU, for tests: the threads of a block are fibers of one thread of the system, barriers and
// shuffles are switches between them. The same .cu file is compiled by nvcc for GPUs and by g++ with this header.
//
// It proves indexing, reductions and synchronisation: a thread that runs ahead of a missing barrier reads what is not
// there yet, in one schedule (forward, reverse, random) or another. It proves neither speed nor memory ordering.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#undef __shared__
#define __shared__ static  // one block at a time
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __restrict__
#define __restrict__ __restrict

namespace jointbert::fibers {

enum class Schedule { kForward, kReverse, kRandom };

// One block: its fibers and what they wait for.
class Block {
  public:
    static constexpr std::size_t kStack = 256 << 10;
    static constexpr unsigned kWarp = 32;

    Block(unsigned threads, Schedule schedule, std::uint32_t seed)
        : fibers_(threads), schedule_(schedule), random_(seed), warps_((threads + kWarp - 1) / kWarp) {}

    void run(const std::function<void()>& body) {
        body_ = &body;
        current_block() = this;
        for (unsigned t = 0; t < fibers_.size(); ++t) {
            Fiber& fiber = fibers_[t];
            fiber.stack.reset(new char[kStack]);
            getcontext(&fiber.context);
            fiber.context.uc_stack.ss_sp = fiber.stack.get();
            fiber.context.uc_stack.ss_size = kStack;
            fiber.context.uc_link = nullptr;
            makecontext(&fiber.context, &Block::entry, 0);
        }
        std::vector<unsigned> order(fibers_.size());
        for (unsigned t = 0; t < order.size(); ++t)
            order[t] = schedule_ == Schedule::kReverse ? unsigned(order.size()) - 1 - t : t;
        while (true) {
            if (schedule_ == Schedule::kRandom) std::shuffle(order.begin(), order.end(), random_);
            bool moved = false;
            for (const unsigned t : order)
                if (fibers_[t].state == State::kReady) {
                    resume(t);
                    moved = true;
                }
            if (moved) continue;
            if (done_ == fibers_.size()) break;
            throw std::runtime_error("fibers: a barrier that some threads of the block or warp never reach");
        }
        current_block() = nullptr;
    }

    static Block& current() { return *current_block(); }
    unsigned thread() const { return thread_; }
    unsigned threads() const { return unsigned(fibers_.size()); }

    void block_barrier() {
        fibers_[thread_].state = State::kBlock;
        if (++at_barrier_ == fibers_.size()) {
            at_barrier_ = 0;
            for (Fiber& fiber : fibers_) fiber.state = State::kReady;
        }
        yield();
    }

    // All lanes of the warp meet.
    void warp_barrier() {
        const unsigned first = thread_ / kWarp * kWarp, end = std::min<unsigned>(first + kWarp, threads());
        Warp& warp = warps_[thread_ / kWarp];
        fibers_[thread_].state = State::kWarp;
        if (++warp.waiting == end - first) {
            warp.waiting = 0;
            for (unsigned t = first; t < end; ++t) fibers_[t].state = State::kReady;
        }
        yield();
    }

    // What every lane of the warp gave, in a buffer that stays until the exchange after the next.
    template <class T>
    const std::uint64_t* exchange(const T& value) {
        static_assert(sizeof(T) <= 8);
        Fiber& fiber = fibers_[thread_];
        std::uint64_t* slots = warps_[thread_ / kWarp].slots[fiber.exchanges++ & 1];
        std::memcpy(&slots[thread_ % kWarp], &value, sizeof(T));
        warp_barrier();
        return slots;
    }

  private:
    enum class State { kReady, kBlock, kWarp, kDone };
    struct Fiber {
        ucontext_t context;
        std::unique_ptr<char[]> stack;
        State state = State::kReady;
        unsigned exchanges = 0;
    };
    struct Warp {
        std::uint64_t slots[2][kWarp];
        unsigned waiting = 0;
    };

    static Block*& current_block() {
        static Block* block = nullptr;
        return block;
    }

    static void entry() {
        Block& block = current();
        block.entered();
        (*block.body_)();
        block.fibers_[block.thread_].state = State::kDone;
        ++block.done_;
        block.yield();
    }

    void resume(unsigned t);
    void yield();
    void entered() {
#if defined(__SANITIZE_ADDRESS__)
        __sanitizer_finish_switch_fiber(nullptr, &main_bottom_, &main_size_);
#endif
    }

    const std::function<void()>* body_ = nullptr;
    std::vector<Fiber> fibers_;
    Schedule schedule_;
    std::mt19937 random_;
    std::vector<Warp> warps_;
    ucontext_t main_;
    unsigned thread_ = 0;
    std::size_t at_barrier_ = 0, done_ = 0;
#if defined(__SANITIZE_ADDRESS__)
    const void* main_bottom_ = nullptr;
    std::size_t main_size_ = 0;
#endif
};

struct Settings {
    Schedule schedule = Schedule::kForward;
    std::uint32_t seed = 0;
};

inline Settings& settings() {
    static Settings value;
    return value;
}

}  // namespace jointbert::fibers

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace jointbert::fibers {

inline void Block::resume(unsigned t) {
    thread_ = t;
    threadIdx = uint3{t % blockDim.x, t / blockDim.x % blockDim.y, t / (blockDim.x * blockDim.y)};
    Fiber& fiber = fibers_[t];
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, fiber.stack.get(), kStack);
#endif
    swapcontext(&main_, &fiber.context);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

inline void Block::yield() {
    Fiber& fiber = fibers_[thread_];
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(fiber.state == State::kDone ? nullptr : &fake, main_bottom_, main_size_);
#endif
    swapcontext(&fiber.context, &main_);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, &main_bottom_, &main_size_);
#endif
}

// A grid of blocks, one after the other.
inline void run_grid(dim3 grid, dim3 block, const std::function<void()>& body) {
    gridDim = grid;
    blockDim = block;
    const unsigned blocks = grid.x * grid.y * grid.z;
    for (unsigned i = 0; i < blocks; ++i) {
        const unsigned b = settings().schedule == Schedule::kReverse ? blocks - 1 - i : i;
        blockIdx = uint3{b % grid.x, b / grid.x % grid.y, b / (grid.x * grid.y)};
        Block(block.x * block.y * block.z, settings().schedule, settings().seed + b).run(body);
    }
}

}  // namespace jointbert::fibers

inline void __syncthreads() { jointbert::fibers::Block::current().block_barrier(); }
inline void __syncwarp(unsigned = 0xffffffffu) { jointbert::fibers::Block::current().warp_barrier(); }

template <class T>
T jointbert_shuffle(T value, unsigned source) {
    const std::uint64_t* slots = jointbert::fibers::Block::current().exchange(value);
    T result;
    std::memcpy(&result, &slots[source], sizeof(T));
    return result;
}

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
    return jointbert_shuffle(value, jointbert::fibers::Block::current().thread() % 32 ^ unsigned(mask));
}

template <class T>
T __shfl_sync(unsigned, T value, int source) {
    return jointbert_shuffle(value, unsigned(source) % 32);
}

inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((std::uint64_t(a) * b) >> 32); }
inline unsigned __float_as_uint(float x) {
    unsigned bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}
inline float __uint_as_float(unsigned bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

using std::max;
using std::min;
