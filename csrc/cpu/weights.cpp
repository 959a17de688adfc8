#include "weights.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <stdexcept>

namespace jointbert {
namespace {

using Shape = std::vector<std::size_t>;

std::string text(const Shape& shape) {
    std::string s = "(";
    for (std::size_t i = 0; i < shape.size(); ++i) s += (i ? ", " : "") + std::to_string(shape[i]);
    return s + (shape.size() == 1 ? ",)" : ")");
}

// Takes tensors out of the state dict one by one, so that unknown tensors remain.
class Reader {
  public:
    explicit Reader(const std::map<std::string, Tensor>& tensors) : tensors_(tensors) {
        for (const auto& [name, tensor] : tensors) unread_.insert(name);
    }

    bool has_layer(std::size_t i) const {
        const std::string prefix = "layers." + std::to_string(i) + ".";
        const auto next = unread_.lower_bound(prefix);
        return next != unread_.end() && next->compare(0, prefix.size(), prefix) == 0;
    }

    const float* take(const std::string& name, const Shape& shape) {
        const auto found = tensors_.find(name);
        if (found == tensors_.end()) throw std::invalid_argument("weights: there is no tensor '" + name + "'");
        const Tensor& tensor = found->second;
        if (tensor.shape != shape)
            throw std::invalid_argument("weights: '" + name + "' has shape " + text(tensor.shape) + "; expected " +
                                        text(shape));
        std::size_t size = 1;
        for (const std::size_t n : shape) size *= n;
        if (!std::all_of(tensor.data, tensor.data + size, [](float x) { return std::isfinite(x); }))
            throw std::invalid_argument("weights: '" + name + "' holds a value that is not finite");
        unread_.erase(name);
        return tensor.data;
    }

    void copy(const std::string& name, std::size_t size, float* to) { std::copy_n(take(name, {size}), size, to); }

    void finish() const {
        if (!unread_.empty())
            throw std::invalid_argument("weights: '" + *unread_.begin() + "' is no tensor of this network");
    }

  private:
    const std::map<std::string, Tensor>& tensors_;
    std::set<std::string> unread_;
};

// torch's Linear weight [outputs, inputs] to panels [inputs, panel]; columns past `outputs` are zero.
void pack(const float* weight, std::size_t outputs, std::size_t inputs, std::size_t panel, float* to) {
    for (std::size_t first = 0; first < outputs; first += panel)
        for (std::size_t k = 0; k < inputs; ++k)
            for (std::size_t column = first; column < first + panel; ++column)
                *to++ = column < outputs ? weight[column * inputs + k] : 0.0f;
}

void read_layer(Reader& reader, const std::string& prefix, std::size_t panel, LayerWeights& to) {
    reader.copy(prefix + "norm1.weight", kWidth, to.norm1_weight);
    reader.copy(prefix + "norm1.bias", kWidth, to.norm1_bias);
    reader.copy(prefix + "qkv.bias", 3 * kWidth, to.qkv_bias);
    const float* qkv = reader.take(prefix + "qkv.weight", {3 * kWidth, kWidth});
    // The attention's scale is a power of two here, so moving it into the query's weights changes no bit of the result.
    static_assert(kHeadWidth == 16);
    constexpr float scale = 0.25f;
    std::vector<float> scaled(qkv, qkv + 3 * kWidth * kWidth);
    std::for_each_n(scaled.begin(), kWidth * kWidth, [](float& x) { x *= scale; });
    std::for_each_n(to.qkv_bias, kWidth, [](float& x) { x *= scale; });
    pack(scaled.data(), 3 * kWidth, kWidth, panel, to.qkv);
    reader.copy(prefix + "proj.bias", kWidth, to.proj_bias);
    pack(reader.take(prefix + "proj.weight", {kWidth, kWidth}), kWidth, kWidth, panel, to.proj);
    reader.copy(prefix + "norm2.weight", kWidth, to.norm2_weight);
    reader.copy(prefix + "norm2.bias", kWidth, to.norm2_bias);
    reader.copy(prefix + "fc1.bias", kFfn, to.fc1_bias);
    pack(reader.take(prefix + "fc1.weight", {kFfn, kWidth}), kFfn, kWidth, panel, to.fc1);
    reader.copy(prefix + "fc2.bias", kWidth, to.fc2_bias);
    pack(reader.take(prefix + "fc2.weight", {kWidth, kFfn}), kWidth, kFfn, panel, to.fc2);
}

// A network has one layer at least: of none, the first one's first tensor is missing.
void read_layers(Reader& reader, std::size_t panel, std::vector<LayerWeights>& to) {
    do {
        to.emplace_back();
        read_layer(reader, "layers." + std::to_string(to.size() - 1) + ".", panel, to.back());
    } while (reader.has_layer(to.size()));
}

void read_output(Reader& reader, const std::string& gain, std::size_t panel, OutputWeights& to) {
    reader.copy("norm.weight", kWidth, to.norm_weight);
    reader.copy("norm.bias", kWidth, to.norm_bias);
    reader.copy("head.bias", kOutputs, to.head_bias);
    pack(reader.take("head.weight", {kOutputs, kWidth}), kOutputs, kWidth, panel, to.head);
    reader.copy(gain, 1, &to.gain);
}

}  // namespace

PackedWeights::PackedWeights(const std::map<std::string, Tensor>& tensors, std::size_t panel) {
    Reader reader(tensors);
    pack(reader.take("embed.weight", {kWidth, kFeatures}), kWidth, kFeatures, panel, ends_.embed);
    const float* bias = reader.take("embed.bias", {kWidth});
    const float* joint = reader.take("joint_embedding", {kJoints, kWidth});
    const float* mask = reader.take("mask", {kWidth});
    for (std::size_t i = 0; i < kJoints * kWidth; ++i) {
        ends_.seen[i] = bias[i % kWidth] + joint[i];
        ends_.masked[i] = mask[i % kWidth] + joint[i];
    }
    read_layers(reader, panel, layers_);
    read_output(reader, "observed_gain", panel, ends_.output);
    reader.finish();
}

PackedSequenceWeights::PackedSequenceWeights(const std::map<std::string, Tensor>& tensors, std::size_t panel) {
    Reader reader(tensors);
    reader.copy("embed1.bias", kFfn, ends_.embed1_bias);
    pack(reader.take("embed1.weight", {kFfn, kSequenceFeatures}), kFfn, kSequenceFeatures, panel, ends_.embed1);
    reader.copy("embed2.bias", kWidth, ends_.embed2_bias);
    pack(reader.take("embed2.weight", {kWidth, kFfn}), kWidth, kFfn, panel, ends_.embed2);
    read_layers(reader, panel, layers_);
    read_output(reader, "gain", panel, ends_.output);
    reader.finish();
}

}  // namespace jointbert
