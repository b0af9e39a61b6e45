// Classifies an image with the graph of an unpacked bundle, in ONNX Runtime's C++ API alone.
//
//     tar -xf lenet-fp32.tar.zst
//     g++ -std=c++17 -I ORT/include onnxruntime_client.cpp -L ORT/lib -lonnxruntime -o client
//     LD_LIBRARY_PATH=ORT/lib ./client lenet-fp32 image.png
//
// ORT is the unpacked archive of a release of ONNX Runtime. Needs the headers of Debian's packages
// nlohmann-json3-dev and libstb-dev. It proves nothing, and trusts the bundle: `assay check` first.

#include <onnxruntime_cxx_api.h>

#define STB_IMAGE_IMPLEMENTATION
#include <stb/stb_image.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

// Returns the pixels in the order of [1, channels, height, width], and puts that into the shape.
std::vector<uint8_t> read_image(const char* path, std::vector<int64_t>& shape) {
    const int64_t channels = shape[1], height = shape[2], width = shape[3];
    int columns = 0, rows = 0, stored = 0;
    const std::unique_ptr<stbi_uc, decltype(&stbi_image_free)> pixels(
        stbi_load(path, &columns, &rows, &stored, static_cast<int>(channels)), stbi_image_free);
    if (!pixels) throw std::runtime_error(std::string(path) + ": " + stbi_failure_reason());
    // An axis of any size is -1.
    if ((height > 0 && rows != height) || (width > 0 && columns != width)) {
        throw std::runtime_error(std::string(path) + " has " + std::to_string(columns) + "x" +
                                 std::to_string(rows) + " pixels; resize it to " +
                                 std::to_string(width) + "x" + std::to_string(height));
    }
    shape = {1, channels, rows, columns};
    const size_t area = static_cast<size_t>(rows) * columns;
    std::vector<uint8_t> planes(channels * area);
    for (size_t pixel = 0; pixel < area; ++pixel) {
        for (int64_t channel = 0; channel < channels; ++channel) {
            planes[channel * area + pixel] = pixels.get()[pixel * channels + channel];
        }
    }
    return planes;
}

void classify(const std::filesystem::path& folder, const char* path) {
    const std::filesystem::path listed = folder / "manifest.json";
    std::ifstream file(listed);
    if (!file) throw std::runtime_error(listed.string() + " cannot be read");
    const auto manifest = nlohmann::json::parse(file);
    const auto& models = manifest.at("models");
    if (models.empty()) throw std::runtime_error(listed.string() + " names no model");
    // The model at one of its precisions.
    const std::string graph = models.begin()->at("graph");
    const Ort::Env env;
    Ort::Session session(env, (folder / graph).c_str(), Ort::SessionOptions());

    const Ort::TypeInfo type = session.GetInputTypeInfo(0);
    std::vector<int64_t> shape;
    if (type.GetONNXType() == ONNX_TYPE_TENSOR) {
        const auto input_type = type.GetTensorTypeAndShapeInfo();
        if (input_type.GetElementType() == ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8) {
            shape = input_type.GetShape();
        }
    }
    if (shape.size() != 4 || (shape[1] != 1 && shape[1] != 3)) {
        throw std::runtime_error(graph + " takes no images of one or three channels");
    }
    std::vector<uint8_t> image = read_image(path, shape);
    const Ort::AllocatorWithDefaultOptions allocator;
    const auto input_name = session.GetInputNameAllocated(0, allocator);
    const auto output_name = session.GetOutputNameAllocated(0, allocator);
    const char* inputs[] = {input_name.get()};
    const char* outputs[] = {output_name.get()};
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const Ort::Value batch = Ort::Value::CreateTensor<uint8_t>(memory, image.data(), image.size(),
                                                               shape.data(), shape.size());
    // uint8: the graph does the rest.
    const auto results = session.Run(Ort::RunOptions(), inputs, &batch, 1, outputs, 1);

    const auto& labels = manifest.at("labels");
    if (!results[0].IsTensor()) throw std::runtime_error(graph + " does not give a tensor");
    const auto output = results[0].GetTensorTypeAndShapeInfo();
    if (output.GetElementType() != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT ||
        output.GetElementCount() != labels.size()) {
        throw std::runtime_error(graph + " does not give a float for each label");
    }
    const float* logits = results[0].GetTensorData<float>();
    const auto best = std::max_element(logits, logits + labels.size()) - logits;
    const std::string before = manifest.at("before");
    std::cout << "before the graph: " << (before.empty() ? "nothing" : before)
              << "; in it: " << manifest.at("preprocessing").get<std::string>() << "\n"
              << labels.at(best).get<std::string>() << std::endl;
}

}  // namespace

int main(int count, char** words) {
    if (count != 3) {
        std::cerr << "usage: " << words[0] << " FOLDER-OF-A-BUNDLE IMAGE" << std::endl;
        return 1;
    }
    try {
        classify(words[1], words[2]);
    } catch (const std::exception& error) {
        std::cerr << "error: " << error.what() << std::endl;
        return 1;
    }
    return 0;
}
