#include "refiner.h"

#include "isa.h"

namespace jointbert {

Refiner::Refiner(const std::map<std::string, Tensor>& tensors, const std::string& isa)
    : kernel_(find_kernel(isa)), weights_(tensors, kernel_.panel) {}

void Refiner::forward(const float* features, std::size_t poses, float* outputs, std::size_t threads) const {
    for_blocks<Scratch>(poses, threads, [&](Scratch& scratch, std::size_t begin, std::size_t end) {
        kernel_.forward(weights_.view(), features + begin * kJoints * kFeatures, end - begin, scratch.residual(),
                        outputs + begin * kJoints * kOutputs);
    });
}

template <typename T>
void Refiner::run(const Poses<T>& poses, const RefinedPoses<T>& refined, std::size_t threads) const {
    run_network(poses, refined, threads,
                [&](std::size_t index, const CanonicalPose& pose, const HiddenState&, const float* output) {
                    Points joints;
                    correct(pose, output, joints);
                    decode(poses, index, joints, pose.sign, output, refined);
                });
}

template <typename T>
void run_external(const Poses<T>& poses, const RefinedPoses<T>& refined, const ExternalNetwork& network) {
    constexpr std::size_t kSize = kJoints * kFeatures;
    std::vector<CanonicalPose> encoded(1);
    std::vector<std::size_t> indices;
    std::vector<float> features(kSize);
    for (std::size_t i = 0; i < poses.count; ++i) {  // the last element is for the next pose
        if (encode(poses, i, encoded.back(), &features[indices.size() * kSize], refined) != Status::kRefined) continue;
        indices.push_back(i);
        encoded.emplace_back();
        features.resize(features.size() + kSize);
    }
    if (indices.empty()) return;
    std::vector<float> outputs(indices.size() * kJoints * kOutputs);
    network(features.data(), indices.size(), outputs.data());
    for (std::size_t i = 0; i < indices.size(); ++i) {
        const float* output = outputs.data() + i * kJoints * kOutputs;
        Points joints;
        correct(encoded[i], output, joints);
        decode(poses, indices[i], joints, encoded[i].sign, output, refined);
    }
}

template void Refiner::run(const Poses<float>&, const RefinedPoses<float>&, std::size_t) const;
template void Refiner::run(const Poses<double>&, const RefinedPoses<double>&, std::size_t) const;
template void run_external(const Poses<float>&, const RefinedPoses<float>&, const ExternalNetwork&);
template void run_external(const Poses<double>&, const RefinedPoses<double>&, const ExternalNetwork&);

}  // namespace jointbert
