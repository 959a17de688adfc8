#include "refiner.h"

#include "isa.h"

namespace jointbert {

Refiner::Refiner(const std::map<std::string, Tensor>& tensors, const std::string& isa)
    : kernel_(find_kernel(isa)), weights_(tensors, kernel_.panel) {}

void Refiner::forward(const float* features, std::size_t poses, float* outputs, std::size_t threads) const {
    for_blocks<Scratch>(poses, threads, [&](Scratch& scratch, std::size_t begin, std::size_t end) {
        kernel_.forward(weights_.view(), features + begin * kJoints * kFeatures, end - begin, scratch.stream(),
                        outputs + begin * kJoints * kOutputs);
    });
}

template <typename T>
void Refiner::run(const Poses<T>& poses, const Refined<T>& refined, std::size_t threads) const {
    run_network(poses, refined, threads,
                [&](std::size_t index, const CanonicalPose& pose, const Hidden&, const float* output) {
                    Points joints;
                    correct(pose, output, joints);
                    decode(poses, index, joints, pose.sign, output, refined);
                });
}

template void Refiner::run(const Poses<float>&, const Refined<float>&, std::size_t) const;
template void Refiner::run(const Poses<double>&, const Refined<double>&, std::size_t) const;

}  // namespace jointbert
