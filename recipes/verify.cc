// nibble verify: decodes every tensor of a GGUF file and compares it with what it should be.
#include "recipes/verify.h"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "quant/format/device.h"
#include "quant/format/rows.h"
#include "recipes/arguments.h"
#include "recipes/recipe.h"

namespace nibble {
namespace {

constexpr const char* kExamples =
    "\nEvery tensor is decoded and must be finite. A file that nibble exported carries a hash of "
    "each\n"
    "tensor's weights, which must still fit. --against compares every weight with the run's "
    "checkpoint.\n"
    "Where there is a GPU it decodes every tensor too, and must get the same bits.\n"
    "Exit status 1 when anything differs.\n"
    "--chat looks at the chat template instead: every conversation must give tokens with one BOS "
    "at most, and after each\n"
    "answer a token that ends the generation.\n"
    "\nexamples:\n"
    "  nibble verify model.gguf\n"
    "  nibble verify model.gguf --against runs/demo\n"
    "  nibble verify model.gguf --chat conversations.jsonl\n";

const char* word(VerifyOutcome outcome) {
  switch (outcome) {
    case VerifyOutcome::kEqual:
      return "equal";
    case VerifyOutcome::kDifferent:
      return "different";
    case VerifyOutcome::kAbsent:
      break;
  }
  return "absent";
}

void print_json(const Verification& result, const VerifyArguments& arguments,
                const CudaGpus& gpus) {
  nlohmann::ordered_json json = {{"path", arguments.path},
                                 {"passed", result.passed()},
                                 {"weights", result.weights},
                                 {"weights_hashed", result.weights_hashed},
                                 {"weights_compared", result.weights_compared},
                                 {"weights_on_gpu", result.weights_on_gpu},
                                 {"gpu_skipped", gpus.problem},
                                 {"missing", result.missing},
                                 {"tensors", nlohmann::ordered_json::array()}};
  for (const TensorVerification& tensor : result.tensors) {
    json["tensors"].push_back({{"name", tensor.name},
                               {"type", type_name(tensor.type)},
                               {"weights", tensor.num_weights},
                               {"finite", tensor.finite},
                               {"hash", word(tensor.hash)},
                               {"checkpoint", word(tensor.checkpoint)},
                               {"gpu", word(tensor.gpu)},
                               {"problem", tensor.problem}});
  }
  std::printf("%s\n",
              json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace).c_str());
}

void print_text(const Verification& result, const VerifyArguments& arguments,
                const CudaGpus& gpus) {
  for (const TensorVerification& tensor : result.tensors) {
    if (!tensor.passed())
      std::printf("  %s (%s): %s\n", tensor.name.c_str(),
                  std::string(type_name(tensor.type)).c_str(), tensor.problem.c_str());
    else if (arguments.all)
      std::printf("  %s (%s): hash %s, checkpoint %s, GPU %s\n", tensor.name.c_str(),
                  std::string(type_name(tensor.type)).c_str(), word(tensor.hash),
                  word(tensor.checkpoint), word(tensor.gpu));
  }
  for (const std::string& name : result.missing)
    std::printf("  %s: was trained, the file does not have it\n", name.c_str());
  std::printf("%s: %s\n", arguments.path.c_str(),
              result.passed() ? "verified" : "NOT what it should be");
  const bool finite = std::all_of(result.tensors.begin(), result.tensors.end(),
                                  [](const TensorVerification& tensor) { return tensor.finite; });
  const auto of_all = [&](int64_t count) {
    return concat(count, " of ", result.weights, " weights");
  };
  std::printf("  CPU decode: %s, %s\n", of_all(result.weights).c_str(),
              finite ? "all finite" : "NOT all finite");
  std::printf("  stored hashes: %s\n", result.weights_hashed == 0
                                           ? "the file has none (nibble did not export it)"
                                           : of_all(result.weights_hashed).c_str());
  std::printf("  checkpoint: %s\n", arguments.against ? of_all(result.weights_compared).c_str()
                                                      : "not given (--against RUN_DIR)");
  std::printf("  GPU decode: %s\n", gpus.count == 0 ? ("skipped: " + gpus.problem).c_str()
                                                    : of_all(result.weights_on_gpu).c_str());
}

}  // namespace

std::optional<VerifyArguments> verify_arguments(int argc, char** argv) {
  cxxopts::Options options("nibble verify", "Is a GGUF file whole, and is it what was trained?");
  options.positional_help("FILE.gguf");
  options.add_options("arguments")("file", "", cxxopts::value<std::string>());
  options.add_options()("against", "a run folder whose checkpoint the file should equal",
                        cxxopts::value<std::string>(), "RUN_DIR");
  options.add_options()("checkpoint", "best (lowest held-out loss; the default) or last",
                        cxxopts::value<std::string>(), "best|last");
  options.add_options()("chat", "conversations to take through the file's chat template",
                        cxxopts::value<std::string>(), "FILE.jsonl");
  options.add_options()("all", "a line for every tensor, not only for those with a problem");
  options.add_options()("json", "one JSON object on stdout");
  options.parse_positional({"file"});
  const auto arguments = parse_arguments(options, argc, argv, kExamples);
  if (!arguments) return std::nullopt;
  if (arguments->count("against") == 0 && arguments->count("checkpoint") > 0)
    fail_usage("--checkpoint names one of a run's; give --against RUN_DIR too");
  VerifyArguments given = {.path = model_argument(*arguments, "file", "FILE.gguf"),
                           .against = {},
                           .checkpoint = text_or_empty(*arguments, "checkpoint"),
                           .chat = text_or_empty(*arguments, "chat"),
                           .all = arguments->count("all") > 0,
                           .json = arguments->count("json") > 0};
  if (!given.chat.empty() && (arguments->count("against") > 0 || given.all))
    fail_usage("--chat looks at no tensor: it goes with neither --against nor --all");
  if (arguments->count("against") > 0) given.against = (*arguments)["against"].as<std::string>();
  return given;
}

int verify_and_print(const VerifyArguments& arguments, const TrainedWeights* against) {
  const GgufFile file = GgufFile::open(arguments.path);
  const CudaGpus gpus = cuda_gpus();
  TensorDecoder on_gpu;
  if (gpus.count > 0)
    on_gpu = [](GgmlType type, std::span<const std::byte> bytes, std::span<float> out) {
      decode_tensor(type, bytes, out, Device{true, 0});
    };
  const Verification result = verify(file, against, on_gpu);
  if (arguments.json)
    print_json(result, arguments, gpus);
  else
    print_text(result, arguments, gpus);
  return result.passed() ? 0 : 1;
}

int run_verify(int argc, char** argv) {
  const auto arguments = verify_arguments(argc, argv);
  if (!arguments) return 0;
  if (!arguments->chat.empty()) return verify_chat(*arguments);
  if (arguments->against) return run_verify_against(argc, argv);
  return verify_and_print(*arguments, nullptr);
}

}  // namespace nibble
