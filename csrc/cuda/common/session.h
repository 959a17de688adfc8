// CUDA graphs behind host arrays. For each batch size one graph copies the inputs from pinned memory, runs the captured
// work, and copies the outputs to pinned memory. Any code that enqueues on the session's stream can be captured.
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
    // `inputs` and `outputs`: bytes of one row of each; `rows`: the most rows. Throws, as do the functions below,
    // std::runtime_error that names the CUDA call that failed.
    GraphSession(std::vector<std::size_t> inputs, std::vector<std::size_t> outputs, std::size_t rows, int device);
    ~GraphSession();  // waits for the stream
    GraphSession(const GraphSession&) = delete;
    GraphSession& operator=(const GraphSession&) = delete;

    cudaStream_t cuda_stream() const { return cuda_stream_; }
    // Device addresses of inputs and outputs; they never change.
    void* input(std::size_t i) const { return inputs_.at(i).device; }
    void* output(std::size_t i) const { return outputs_.at(i).device; }
    std::size_t inputs() const { return inputs_.size(); }
    std::size_t outputs() const { return outputs_.size(); }
    std::size_t input_row_bytes(std::size_t i) const { return inputs_.at(i).row_bytes; }
    std::size_t output_row_bytes(std::size_t i) const { return outputs_.at(i).row_bytes; }

    // Work enqueued on the stream between begin and end becomes the graph for batches of up to `rows`; abandon ends the
    // capture without a graph. One thread calls all three; meanwhile others wait.
    void begin(std::size_t rows);
    void end();
    void abandon();

    // The captured batch sizes.
    std::vector<std::size_t> recorded() const;

    // Copies `rows` rows of each input in, replays the smallest graph that has room for them, waits, and copies as many
    // rows of each output out. The graph's remaining rows keep the contents of an earlier run. Throws
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
    cudaStream_t cuda_stream_ = nullptr;
    std::map<std::size_t, cudaGraphExec_t> graphs_;
    mutable std::recursive_mutex mutex_;
};

}  // namespace jointbert::cuda
