// CUDA kernels on a CPU, for tests: the threads of a block are fibers of one thread of the system, barriers and
// shuffles are switches between them. The same .cu file is compiled by nvcc for GPUs and by g++ with this header.
//
// It proves indexing, reductions and synchronisation: a thread that runs ahead of a missing barrier reads what is not
// there yet, in one schedule (forward, reverse, random, uneven) or another. It proves neither speed nor memory
// ordering.
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
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#undef __shared__
#define __shared__ static  // for kernels whose blocks live one at a time
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __global__
#define __global__
#undef __device__
#define __device__
#undef __grid_constant__
#define __grid_constant__
#undef __restrict__
#define __restrict__ __restrict

namespace jointbert::fibers {

enum class Schedule { kForward, kReverse, kRandom, kUneven };  // uneven: in random order, some stay far behind

struct Settings {
    Schedule schedule = Schedule::kForward;
    std::uint32_t seed = 0;
    unsigned overlap =
        1;  // blocks of an ordinary grid that live at the same time: of kernels with dynamic memory alone
};

inline Settings& settings() {
    static Settings value;
    return value;
}

// How often all that wait for each other have met, in a block and in a gang.
struct Meetings {
    unsigned long blocks = 0, gangs = 0;
};
inline Meetings& meetings() {
    static Meetings value;
    return value;
}

constexpr unsigned kWarp = 32;

struct Freed {
    void operator()(void* memory) const { std::free(memory); }
};

// Blocks that live at the same time: one, a cluster's, or a cooperative grid's. Their fibers and what they wait for.
class Gang {
  public:
    static constexpr std::size_t kStack = 128 << 10;
    static constexpr std::size_t kSlot = 32;  // bytes that a lane can give in an exchange
    static constexpr std::size_t kPauses = 10'000'000;
    static constexpr unsigned kWake = 256, kSleep = 512;  // rounds of an uneven schedule, on average and at most

    Gang(unsigned first_block, unsigned blocks, dim3 grid, dim3 block, std::size_t shared_bytes,
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
            std::memset(blocks_[i].shared.get(), 0xff, shared_bytes);  // NaN: what nobody wrote is noticed
        }
    }

    void run() {
        current_gang() = this;
        for (Fiber& fiber : fibers_) {
            fiber.stack.reset(new char[kStack]);
            getcontext(&fiber.context);
            fiber.context.uc_stack.ss_sp = fiber.stack.get();
            fiber.context.uc_stack.ss_size = kStack;
            fiber.context.uc_link = nullptr;
            makecontext(&fiber.context, &Gang::entry, 0);
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
                    if (settings().schedule == Schedule::kUneven && random_() % kWake == 0)
                        fibers_[i].asleep = 1 + random_() % kSleep;
                    else
                        resume(i);
                }
            if (!moved) throw std::runtime_error("fibers: a barrier that some threads never reach");
            if (pauses_ > kPauses) throw std::runtime_error("fibers: a loop that waits for ever");
        }
        current_gang() = nullptr;
    }

    static Gang& current() { return *current_gang(); }
    unsigned thread() const { return current_ % threads_; }
    unsigned rank() const { return current_ / threads_; }
    char* shared(unsigned rank) { return blocks_[rank].shared.get(); }

    void block_barrier() {
        Block& block = blocks_[rank()];
        wait(State::kBlock);
        if (++block.waiting == threads_) {
            block.waiting = 0;
            ++meetings().blocks;
            release(rank() * threads_, threads_);
        }
        yield();
    }

    void gang_barrier() {
        wait(State::kGang);
        if (++waiting_ == fibers_.size()) {
            waiting_ = 0;
            ++meetings().gangs;
            release(0, unsigned(fibers_.size()));
        }
        yield();
    }

    // All lanes of the warp meet.
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

    // What every lane of the warp gave, kSlot bytes apart, in a buffer that stays until the exchange after the next.
    template <class T>
    const char* exchange(const T& value) {
        static_assert(sizeof(T) <= kSlot);
        char* slots = warp().slots[fibers_[current_].exchanges++ & 1];
        std::memcpy(slots + thread() % kWarp * kSlot, &value, sizeof(T));
        warp_barrier();
        return slots;
    }

    // Lets others run: for loops that wait for what another block writes.
    void pause() {
        ++pauses_;  // an exception could not leave the fiber: run() looks at it
        yield();
    }

    // Copies that are under way until somebody waits for them: cp.async and its groups.
    void copy_later(void* to, const void* from, std::size_t bytes) {
        fibers_[current_].copies.push_back({to, from, bytes, fibers_[current_].groups});
    }
    void commit_copies() { ++fibers_[current_].groups; }
    void wait_copies(unsigned all_but) {
        Fiber& fiber = fibers_[current_];
        auto& copies = fiber.copies;
        while (!copies.empty() && copies.front().group + all_but < fiber.groups) {
            std::memcpy(copies.front().to, copies.front().from, copies.front().bytes);
            copies.pop_front();
        }
    }

  private:
    enum class State { kReady, kBlock, kWarp, kGang, kDone };
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
        alignas(16) char slots[2][kWarp * kSlot];
        unsigned waiting = 0;
    };
    struct Block {
        unsigned index = 0, waiting = 0;
        std::vector<Warp> warps;
        std::unique_ptr<char, Freed> shared;
    };

    static Gang*& current_gang() {
        static Gang* gang = nullptr;
        return gang;
    }

    static void entry() {
        Gang& gang = current();
        gang.entered();
        gang.body_();
        gang.fibers_[gang.current_].state = State::kDone;
        ++gang.done_;
        gang.yield();
    }

    Warp& warp() { return blocks_[rank()].warps[thread() / kWarp]; }
    void wait(State state) { fibers_[current_].state = state; }
    void release(unsigned first, unsigned count) {
        for (unsigned i = first; i < first + count; ++i) fibers_[i].state = State::kReady;
    }

    void resume(unsigned fiber);
    void yield();
    void entered() {
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
    std::size_t waiting_ = 0, done_ = 0, pauses_ = 0;
#if defined(__SANITIZE_ADDRESS__)
    const void* main_bottom_ = nullptr;
    std::size_t main_size_ = 0;
#endif
};

}  // namespace jointbert::fibers

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace jointbert::fibers {

inline void Gang::resume(unsigned i) {
    current_ = i;
    const unsigned t = thread(), b = blocks_[rank()].index;
    threadIdx = uint3{t % block_.x, t / block_.x % block_.y, t / (block_.x * block_.y)};
    blockIdx = uint3{b % grid_.x, b / grid_.x % grid_.y, b / (grid_.x * grid_.y)};
    Fiber& fiber = fibers_[i];
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, fiber.stack.get(), kStack);
#endif
    swapcontext(&main_, &fiber.context);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

inline void Gang::yield() {
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

// A grid, gang after gang of `together` blocks.
inline void run_grid(dim3 grid, dim3 block, unsigned together, std::size_t shared_bytes,
                     const std::function<void()>& body) {
    gridDim = grid;
    blockDim = block;
    const unsigned blocks = grid.x * grid.y * grid.z, gangs = (blocks + together - 1) / together;
    for (unsigned i = 0; i < gangs; ++i) {
        const unsigned first = (settings().schedule == Schedule::kReverse ? gangs - 1 - i : i) * together;
        Gang(first, std::min(together, blocks - first), grid, block, shared_bytes, body).run();
    }
}

// What takes a launch: a stream of a runtime that the tests play, or nobody, and it is done at once.
inline std::function<void(cudaStream_t, std::function<void()>)>& launcher() {
    static std::function<void(cudaStream_t, std::function<void()>)> take;
    return take;
}
inline void in_order(cudaStream_t stream, const std::function<void()>& work) {
    if (launcher())
        launcher()(stream, work);
    else
        work();
}

// Memory is freed when the process ends.
inline void keep(void* memory) {
    static std::mutex alone;
    static std::vector<std::unique_ptr<void, Freed>> kept;
    const std::lock_guard<std::mutex> lock(alone);
    kept.emplace_back(memory);
}

// One launch to come that fails, so many launches ahead; -1: none.
struct Refusal {
    int ahead = -1;
    cudaError_t next() { return ahead < 0 || ahead-- ? cudaSuccess : cudaErrorUnknown; }
};
inline Refusal& refusal() {
    static Refusal value;
    return value;
}

}  // namespace jointbert::fibers

inline void __syncthreads() { jointbert::fibers::Gang::current().block_barrier(); }
inline void __syncwarp(unsigned = 0xffffffffu) { jointbert::fibers::Gang::current().warp_barrier(); }

template <class T>
T jointbert_shuffle(T value, unsigned source) {
    const char* slots = jointbert::fibers::Gang::current().exchange(value);
    T result;
    std::memcpy(&result, slots + source * jointbert::fibers::Gang::kSlot, sizeof(T));
    return result;
}

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
    return jointbert_shuffle(value, jointbert::fibers::Gang::current().thread() % 32 ^ unsigned(mask));
}

inline void __threadfence() {}
inline unsigned atomicAdd(unsigned* to, unsigned value) {  // one fiber at a time
    const unsigned before = *to;
    *to += value;
    return before;
}
inline unsigned long long atomicCAS(unsigned long long* at, unsigned long long expected, unsigned long long value) {
    const unsigned long long before = *at;
    if (before == expected) *at = value;
    return before;
}
template <class T>
T __ldg(const T* from) {
    return *from;
}
template <class T>
T __ldcg(const T* from) {
    return *from;
}
template <class T>
void __stcg(T* to, T value) {
    *to = value;
}
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }

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
