// The built programs: nibble runs without LibTorch, and with it where a recipe needs it.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include "io/gguf.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

const fs::path kProgram = NIBBLE_PROGRAM;
constexpr const char* kNoTorch =
    "this build of nibble has no LibTorch; scripts/setup builds one that has\n";

struct Finished {
  int status;        // exit status; 128 + the signal that ended it
  std::string text;  // stdout and stderr
};

Finished run(const std::string& command) {
  std::FILE* pipe = popen((command + " 2>&1").c_str(), "r");
  if (!pipe) throw std::runtime_error("popen failed");
  std::string text;
  std::array<char, 4096> piece;
  while (const size_t taken = std::fread(piece.data(), 1, piece.size(), pipe))
    text.append(piece.data(), taken);
  const int status = pclose(pipe);
  return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), text};
}

Finished run(const fs::path& program, const std::string& arguments) {
  return run('\'' + program.string() + "' " + arguments);
}

/// A folder of the running test's own, empty.
fs::path empty_folder() {
  const auto* test = testing::UnitTest::GetInstance()->current_test_info();
  const fs::path folder = fs::path(testing::TempDir()) / (std::string("nibble_") + test->name());
  fs::remove_all(folder);
  fs::create_directories(folder);
  return folder;
}

/// nibble alone in a folder, as the preset `tools` builds it.
fs::path program_alone(const fs::path& folder) {
  fs::copy_file(kProgram, folder / "nibble");
  return folder / "nibble";
}

std::string small_model(const fs::path& folder) {
  const std::string path = folder / "small.gguf";
  GgufMetadata metadata;
  metadata.set("general.architecture", std::string("llama"));
  GgufWriter writer(path, metadata, {{"token_embd.weight", {64, 8}, GgmlType::kF32}});
  std::vector<float> weights(64 * 8);
  for (size_t i = 0; i < weights.size(); ++i) weights[i] = static_cast<float>(i % 37) - 18.0f;
  writer.write(std::as_bytes(std::span(weights)));
  writer.finish();
  return path;
}

struct Command {
  std::string name;
  bool needs_torch;
};
#define NIBBLE_RECIPE(name, summary) {#name, false},
#define NIBBLE_TORCH_RECIPE(name, summary) {#name, true},
#define NIBBLE_TORCH_PART(name)
const std::vector<Command> kCommands = {
#include "recipes/recipes.def"
};
#undef NIBBLE_RECIPE
#undef NIBBLE_TORCH_RECIPE
#undef NIBBLE_TORCH_PART

TEST(Program, LoadsNoTorch) {
  const Finished ldd = run("ldd '" + kProgram.string() + '\'');
  ASSERT_EQ(ldd.status, 0) << ldd.text;
  EXPECT_NE(ldd.text.find("libc.so"), std::string::npos) << ldd.text;
  for (const char* library : {"torch", "libc10"})
    EXPECT_EQ(ldd.text.find(library), std::string::npos) << ldd.text;
}

#ifndef __SANITIZE_ADDRESS__
TEST(Program, IsSmall) { EXPECT_LE(fs::file_size(kProgram), 30'000'000u); }
#endif

TEST(Program, AloneItHasTheToolbox) {
  const fs::path folder = empty_folder(), program = program_alone(folder);
  const std::string model = small_model(folder), out = folder / "out.gguf";
  for (const std::string& arguments :
       {"quantize -q " + model + ' ' + out + " Q4_0 --pure", "inspect " + out, "verify " + out,
        std::string("bench --help"), std::string("tokenize --help")}) {
    const Finished finished = run(program, arguments);
    EXPECT_EQ(finished.status, 0) << arguments << ": " << finished.text;
  }
}

TEST(Program, AloneItSaysWhatItLacks) {
  const fs::path folder = empty_folder(), program = program_alone(folder);
  const std::string model = small_model(folder), out = folder / "out.gguf";
  std::vector<std::string> commands = {
      "verify small.gguf --against run", "bench --training --model small.gguf",
      "quantize " + model + ' ' + out + " Q4_0 --method gptq --calibration " + model};
  for (const Command& command : kCommands)
    if (command.needs_torch) commands.push_back(command.name + " --help");
  for (const std::string& command : commands) {
    const Finished finished = run(program, command);
    EXPECT_EQ(finished.status, 2) << command;
    EXPECT_EQ(finished.text, "nibble: " + command.substr(0, command.find(' ')) + ": " + kNoTorch);
  }
}

TEST(Program, ListsEveryCommand) {
  const fs::path alone = program_alone(empty_folder());
  for (const fs::path& program : {kProgram, alone}) {
    const Finished help = run(program, "--help");
    EXPECT_EQ(help.status, 0);
    for (const Command& command : kCommands)
      EXPECT_NE(help.text.find("\n  " + command.name + ' '), std::string::npos) << command.name;
  }
}

class ProgramWithTorch : public testing::Test {
 protected:
  void SetUp() override {
    if (!fs::exists(kProgram.parent_path() / "nibble-torch"))
      GTEST_SKIP() << "this build has no LibTorch";
  }
};

TEST_F(ProgramWithTorch, HasEveryCommand) {
  for (const Command& command : kCommands) {
    const Finished help = run(kProgram, command.name + " --help");
    EXPECT_EQ(help.status, 0) << command.name << ": " << help.text;
    EXPECT_NE(help.text.find("--help"), std::string::npos) << command.name;
  }
}

TEST_F(ProgramWithTorch, ErrorsAndExitStatusComeThrough) {
  const fs::path folder = empty_folder();
  const std::string model = small_model(folder), nowhere = folder / "nowhere";
  const std::vector<std::pair<std::string, int>> failing = {
      {"train " + nowhere + ".yaml", 2},
      {"perplexity " + nowhere + ".gguf " + model, 1},
      {"verify " + model + " --against " + nowhere, 1},
      {"bench --training --model " + nowhere + " --steps 0", 2},
      {"quantize " + model + ' ' + nowhere + " Q4_0 --method awq --calibration " + model, 1}};
  for (const auto& [arguments, status] : failing) {
    const Finished finished = run(kProgram, arguments);
    EXPECT_EQ(finished.status, status) << arguments << ": " << finished.text;
    const std::string name = arguments.substr(0, arguments.find(' '));
    EXPECT_EQ(finished.text.rfind("nibble: " + name + ": ", 0), 0u) << finished.text;
    EXPECT_EQ(std::count(finished.text.begin(), finished.text.end(), '\n'), 1) << finished.text;
  }
}

TEST_F(ProgramWithTorch, IsFoundThroughALink) {
  const fs::path link = empty_folder() / "link";
  fs::create_symlink(kProgram, link);
  EXPECT_EQ(run(link, "train --help").status, 0);
}

}  // namespace
}  // namespace nibble
