// Work for a GPU, recorded once and replayed: input from pinned memory, whatever was enqueued, output to pinned memory,
// one CUDA graph for each size of batch. What is recorded may come from anybody who can enqueue on a given stream.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <map>
#include <mutex>
#include <vector>

#include "resources.h"

namespace jointbert::cuda {

class GraphSession {
  public:
    // Bytes of one row of each input and output, and how many rows there may be. Throws std::runtime_error with the
    // name of the CUDA call that failed, as does all below.
    GraphSession(std::vector<std::size_t> inputs, std::vector<std::size_t> outputs, std::size_t rows, int device);
    ~GraphSession();  // waits for what runs
    GraphSession(const GraphSession&) = delete;
    GraphSession& operator=(const GraphSession&) = delete;

    cudaStream_t stream() const { return stream_; }
    // Where inputs and outputs lie on the device; they stay there.
    void* input(std::size_t i) const { return inputs_.at(i).device; }
    void* output(std::size_t i) const { return outputs_.at(i).device; }
    std::size_t inputs() const { return inputs_.size(); }
    std::size_t outputs() const { return outputs_.size(); }
    std::size_t input_row_bytes(std::size_t i) const { return inputs_.at(i).row_bytes; }
    std::size_t output_row_bytes(std::size_t i) const { return outputs_.at(i).row_bytes; }

    // Between begin and end, what is enqueued on the stream becomes part of the graph for batches of up to `rows`.
    // `abandon` forgets it. All three are the same thread's; others wait.
    void begin(std::size_t rows);
    void end();
    void abandon();

    // The recorded sizes of batch.
    std::vector<std::size_t> recorded() const;

    // One array for each input and output. Copies `rows` rows in, replays the graph of the smallest size that holds
    // them, and copies as many out. Rows behind them hold what was there before. Waits for the result. Throws
    // std::invalid_argument where no graph is large enough.
    void run(std::size_t rows, const std::vector<const void*>& inputs, const std::vector<void*>& outputs);

  private:
    struct Buffer {
        std::size_t row_bytes = 0;
        void* host = nullptr;
        void* device = nullptr;
    };
    void release();

    std::vector<Buffer> inputs_, outputs_;
    std::size_t rows_, recording_ = 0;
    int device_;
    cudaStream_t stream_ = nullptr;
    std::map<std::size_t, cudaGraphExec_t> graphs_;
    mutable std::recursive_mutex mutex_;
};

}  // namespace jointbert::cuda
