#include "configs/config.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <set>
#include <string>

#include "base/error.h"
#include "quant/mix/tensor_types.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

/// A folder with a model, two texts and a JSONL file (empty: only their being there counts) as the
/// current one.
class ConfigTest : public testing::Test {
 protected:
  void SetUp() override {
    before_ = fs::current_path();
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    folder_ = fs::temp_directory_path() / (std::string("nibble_config_") + info->name());
    fs::create_directories(folder_ / "sub");
    fs::current_path(folder_);
    for (const char* name : {"m.gguf", "a.txt", "b.txt", "c.jsonl", "sub/only_there.gguf"})
      std::ofstream(folder_ / name) << "x";
  }
  void TearDown() override {
    fs::current_path(before_);
    fs::remove_all(folder_);
  }

  static std::string error_of(const std::string& text,
                              const std::vector<ConfigOverride>& overrides = {}) {
    try {
      parse_config(text, "f.yaml", overrides);
    } catch (const Error& error) {
      EXPECT_EQ(error.exit_code(), 2);
      return error.what();
    }
    return "no error";
  }

  fs::path before_, folder_;
};

const std::string kSmall = "model: m.gguf\ndata:\n  files: [a.txt]\n";

TEST_F(ConfigTest, FillsEveryOptionsStruct) {
  const RunConfig config = parse_config(R"(
name: trial
model: m.gguf
quant: {type: Q4_0, scales: learned, initial: ggml}
data:
  files: [a.txt, "*.jsonl"]
  text_field: body
  sequence_length: 256
loss: {kind: mix, ce_weight: 0.25}
optimizer: {learning_rate: 2e-4, scale_learning_rate: 0.001}
batch_tokens: 512
max_minutes: 1.5
seed: 18446744073709551615
baselines: [search]
compare: {text: b.txt, ctx: 128, chunks: 4, also: [m.gguf]}
prompts: ["Once upon a time"]
)",
                                        "f.yaml");
  EXPECT_EQ(config.name, "trial");
  EXPECT_EQ(config.output, "runs/trial");
  EXPECT_EQ(config.train.quant.initial, "ggml");
  EXPECT_EQ(config.train.data.files, (std::vector<std::string>{"a.txt", "*.jsonl"}));
  EXPECT_EQ(config.train.data.text_field, "body");
  EXPECT_EQ(config.train.loss.ce_weight, 0.25);
  EXPECT_EQ(config.train.optimizer.learning_rate, 2e-4);
  EXPECT_EQ(config.train.batch_tokens, 512);
  EXPECT_EQ(config.train.micro_batch_tokens, 256) << "the default does not divide the batch";
  EXPECT_EQ(config.train.max_minutes, 1.5);
  EXPECT_EQ(config.train.seed, 18446744073709551615u);
  EXPECT_EQ(config.baselines, std::vector<std::string>{"search"});
  EXPECT_EQ(config.compare.ctx, 128);
  EXPECT_EQ(config.compare.also, std::vector<std::string>{"m.gguf"});
  EXPECT_EQ(config.prompts, std::vector<std::string>{"Once upon a time"});
}

TEST_F(ConfigTest, NameComesFromTheFile) {
  const RunConfig config = parse_config(kSmall, "sub/demo.yaml");
  EXPECT_EQ(config.name, "demo");
  EXPECT_EQ(config.output, "runs/demo");
}

TEST_F(ConfigTest, UnknownKeysAreToldWithTheNearest) {
  EXPECT_EQ(error_of(kSmall + "optimiser: {learning_rate: 1e-4}\n"),
            "f.yaml:4:1: optimiser: unknown key (did you mean 'optimizer'?)");
  EXPECT_EQ(error_of(kSmall + "optimizer:\n  learning_rat: 1e-4\n"),
            "f.yaml:5:3: optimizer.learning_rat: unknown key (did you mean 'learning_rate'?)");
  EXPECT_EQ(error_of(kSmall + "learning_rate: 1e-4\n"),
            "f.yaml:4:1: learning_rate: unknown key (did you mean 'optimizer.learning_rate'?)");
  EXPECT_EQ(error_of(kSmall + "zzzzzzzz: 1\n"), "f.yaml:4:1: zzzzzzzz: unknown key");
  EXPECT_EQ(error_of(kSmall, {"optimizer.learning_rat=1"}),
            "--set optimizer.learning_rat: unknown key (did you mean 'learning_rate'?)");
}

TEST_F(ConfigTest, WrongTypesAndRanges) {
  EXPECT_EQ(error_of(kSmall + "batch_tokens: many\n"),
            "f.yaml:4:15: batch_tokens: wants a whole number, found 'many'");
  EXPECT_EQ(error_of(kSmall + "batch_tokens: 1.5\n"),
            "f.yaml:4:15: batch_tokens: wants a whole number, found '1.5'");
  EXPECT_EQ(error_of(kSmall + "batch_tokens: '512'\n"),
            "f.yaml:4:15: batch_tokens: wants a whole number, found '512'");
  EXPECT_EQ(error_of(kSmall + "batch_tokens: 99999999999999999999\n"),
            "f.yaml:4:15: batch_tokens: wants a whole number, found '99999999999999999999'");
  EXPECT_EQ(error_of(kSmall + "seed: -1\n"),
            "f.yaml:4:7: seed: wants a whole number, 0 or more, found '-1'");
  EXPECT_EQ(error_of(kSmall + "max_minutes: .nan\n"),
            "f.yaml:4:14: max_minutes: wants a number, found '.nan'");
  EXPECT_EQ(error_of(kSmall + "max_minutes: nan\n"),
            "f.yaml:4:14: max_minutes: wants 0 to 1e+06, found 'nan'");
  EXPECT_EQ(error_of(kSmall + "loss: kl\n"), "f.yaml:4:7: loss: wants a group of keys, found 'kl'");
  EXPECT_EQ(error_of(kSmall + "prompts: hello\n"),
            "f.yaml:4:10: prompts: wants a list ([a, b]), found 'hello'");
  EXPECT_EQ(error_of(kSmall + "activation_checkpointing: maybe\n"),
            "f.yaml:4:27: activation_checkpointing: wants true or false, found 'maybe'");
  EXPECT_EQ(error_of(kSmall + "dtype:\n"), "f.yaml:4:1: dtype: wants text, found nothing");
  EXPECT_EQ(error_of(kSmall + "optimizer: {learning_rate: -1}\n"),
            "f.yaml:4:28: optimizer.learning_rate: wants 0 to 1, found '-1'");
  EXPECT_EQ(
      error_of(kSmall + "dtype: float16\n"),
      "f.yaml:4:8: dtype: wants one of auto, float32, bfloat16, found 'float16' (did you mean "
      "'bfloat16'?)");
  EXPECT_EQ(error_of("- a\n"), "f.yaml:1:1: wants keys (name: value), found a list");
  EXPECT_EQ(error_of(""), "f.yaml:1:1: wants keys (name: value), found nothing");
}

TEST_F(ConfigTest, UnknownQuantizationTypeNamesTheNearest) {
  const std::string error = error_of(kSmall + "quant: {type: Q4_O}\n");
  EXPECT_NE(error.find("f.yaml:4:15: quant.type: wants one of "), std::string::npos) << error;
  EXPECT_NE(error.find("(did you mean 'Q4_"), std::string::npos) << error;
}

TEST_F(ConfigTest, ATypeThatIsOnlyDecodedNamesTheNearest) {
  EXPECT_EQ(error_of(kSmall + "quant: {type: IQ2_S}\n"),
            "f.yaml:4:15: quant.type: nibble decodes IQ2_S but does not encode it; Q2_K is the "
            "nearest type that it encodes");
  EXPECT_EQ(error_of(kSmall + "quant: {type: IQ2_M}\n"),  // a mix around IQ2_S
            error_of(kSmall + "quant: {type: IQ2_S}\n"));
  EXPECT_EQ(error_of(kSmall + "quant: {type: Q4_0, output_tensor_type: iq3_xxs}\n"),
            "f.yaml:4:41: quant.output_tensor_type: nibble decodes IQ3_XXS but does not encode it; "
            "Q3_K is the nearest type that it encodes");
}

TEST_F(ConfigTest, MissingFilesAndKeys) {
  EXPECT_EQ(error_of("data: {files: [a.txt]}\n"),
            "f.yaml: model: is missing: name a GGUF file or a Hugging Face folder, or give "
            "new_model to train from scratch");
  EXPECT_EQ(error_of("model: m.gguf\n"), "f.yaml: data.files: is missing and has no default");
  EXPECT_EQ(error_of("model: n.gguf\ndata: {files: [a.txt]}\n"),
            "f.yaml:1:8: model: no such file: n.gguf");
  EXPECT_EQ(error_of("model: sub\ndata: {files: [a.txt]}\n"),
            "f.yaml:1:8: model: is a folder: sub");
  EXPECT_EQ(error_of("model: m.gguf\ndata: {files: [a.txt, '*.md']}\n"),
            "f.yaml:2:15: data.files: no file matches: *.md");
  EXPECT_EQ(error_of(kSmall + "compare: {text: z.txt}\n"),
            "f.yaml:4:17: compare.text: no such file: z.txt");
  EXPECT_EQ(error_of(kSmall, {"model=n.gguf"}), "--set: model: no such file: n.gguf");
}

TEST_F(ConfigTest, FilesAreAlsoFoundBesideTheYaml) {
  const RunConfig config =
      parse_config("model: only_there.gguf\ndata: {files: [../a.txt]}\n", "sub/f.yaml");
  EXPECT_EQ(config.model, "sub/only_there.gguf");
  EXPECT_EQ(config.train.data.files, std::vector<std::string>{"a.txt"});
  EXPECT_EQ(parse_config(kSmall, "sub/f.yaml").model, "m.gguf") << "the current folder comes first";
}

TEST_F(ConfigTest, SettingsWithoutEffectAreErrors) {
  EXPECT_EQ(error_of(kSmall + "quant: {scales: dynamic}\noptimizer: {scale_learning_rate: 1e-3}\n"),
            "f.yaml:5:34: optimizer.scale_learning_rate: has no effect, since scales are not "
            "trained (quant.scales is not learned)");
  EXPECT_EQ(error_of(kSmall + "loss: {ce_weight: 0.5}\n"),
            "f.yaml:4:19: loss.ce_weight: has no effect, since loss.kind is not mix");
  EXPECT_EQ(error_of(kSmall + "compare: {ctx: 128}\n"),
            "f.yaml:4:16: compare.ctx: has no effect, since compare.text is not given");
  EXPECT_EQ(error_of(kSmall + "quant: {calibration_tokens: 100}\n"),
            "f.yaml:4:29: quant.calibration_tokens: has no effect, since neither quant.initial nor "
            "a baseline is gptq, awq, imatrix or blockwise");
  EXPECT_NO_THROW(
      parse_config(kSmall, "f.yaml", {"quant.calibration_tokens=100", "baselines=[blockwise]"}));
  for (const char* method : {"gptq", "awq", "imatrix"})
    for (const char* key : {"quant.initial=", "baselines="}) {
      const std::string value = key[0] == 'b' ? std::string("[") + method + "]" : method;
      EXPECT_NO_THROW(
          parse_config(kSmall, "f.yaml", {"quant.calibration_tokens=100", key + value}));
    }
  EXPECT_EQ(error_of(kSmall, {"quant.type=none", "baselines=[ggml]"}),
            "--set: baselines: has no effect, since quant.type is none");
  EXPECT_EQ(error_of(kSmall, {"evaluate_every=0", "early_stop=3"}),
            "--set: early_stop: has no effect, since evaluate_every is 0");
  EXPECT_EQ(error_of(kSmall, {"control=true"}),
            "--set: control: has no effect, since compare.text is not given");
  EXPECT_EQ(error_of(kSmall, {"compare.matrix=[Q8_0]"}),
            "--set: compare.matrix: has no effect, since compare.text is not given");
  EXPECT_EQ(error_of(kSmall, {"blockwise.epochs=2"}),
            "--set: blockwise.epochs: has no effect, since blockwise.tokens is 0");
  EXPECT_EQ(error_of(kSmall, {"quant.type=none", "blockwise.tokens=1024"}),
            "--set: blockwise.tokens: has no effect, since quant.type is none");
  EXPECT_EQ(error_of(kSmall, {"data.held_out=0", "early_stop=3"}),
            "--set: early_stop: has no effect, since data.held_out is 0");
}

TEST_F(ConfigTest, ImpossibleSizes) {
  EXPECT_EQ(error_of(kSmall + "batch_tokens: 500\n"),
            "f.yaml:4:15: batch_tokens: 500 is less than one sequence (data.sequence_length 512)");
  EXPECT_EQ(error_of(kSmall + "batch_tokens: 1000\n"),
            "f.yaml:4:15: batch_tokens: 1000 is no multiple of data.sequence_length 512");
  EXPECT_EQ(error_of(kSmall, {"blockwise.tokens=4096", "blockwise.batch_tokens=1000"}),
            "--set: blockwise.batch_tokens: 1000 is no multiple of data.sequence_length 512");
  EXPECT_EQ(error_of(kSmall, {"blockwise.tokens=600"}),
            "--set: blockwise.tokens: 600 is less than one step (blockwise.batch_tokens 1024)");
  EXPECT_EQ(error_of(kSmall + "micro_batch_tokens: 768\n"),
            "f.yaml:4:21: micro_batch_tokens: must divide batch_tokens 1024, found 768");
  EXPECT_EQ(error_of(kSmall + "max_tokens: 100\n"),
            "f.yaml:4:13: max_tokens: 100 is less than one step (batch_tokens 1024)");
  EXPECT_EQ(error_of(kSmall + "baselines: [ggml, ggml]\n"),
            "f.yaml:4:12: baselines: 'ggml' is given twice");
}

const std::string kNew =
    R"(new_model: {width: 64, feed_forward: 96, layers: 2, heads: 4, vocab_size: 300}
data: {files: [a.txt]}
loss: {kind: ce}
quant: {type: none}
)";

TEST_F(ConfigTest, ANewModelInTheModelsPlace) {
  const RunConfig config = parse_config(kNew, "f.yaml", {"new_model.tied=true"});
  EXPECT_TRUE(config.makes_model());
  EXPECT_EQ(config.new_model.architecture, "llama");
  EXPECT_EQ(config.new_model.width, 64);
  EXPECT_EQ(config.new_model.feed_forward, 96);
  EXPECT_EQ(config.new_model.layers, 2);
  EXPECT_EQ(config.new_model.kv_heads, 4) << "as many as heads, unless given";
  EXPECT_EQ(config.new_model.vocab_size, 300);
  EXPECT_EQ(config.new_model.context, 512);
  EXPECT_TRUE(config.new_model.tied);
  EXPECT_EQ(plan_options(config).type_name, "F32");
  EXPECT_EQ(parse_config(kNew, "f.yaml", {"new_model.kv_heads=2"}).new_model.kv_heads, 2);
  EXPECT_FALSE(parse_config(kSmall, "f.yaml").makes_model());
}

TEST_F(ConfigTest, MistakesInANewModel) {
  EXPECT_EQ(error_of(kNew + "model: m.gguf\n"),
            "f.yaml:1:20: new_model.width: model is given too; a run starts from a file or from a "
            "new model");
  EXPECT_EQ(error_of(kSmall, {"new_model.width=64"}),
            "--set: new_model.width: model is given too; a run starts from a file or from a new "
            "model");
  EXPECT_EQ(error_of("new_model: {width: 64}\ndata: {files: [a.txt]}\n"),
            "f.yaml: new_model.feed_forward: is missing and has no default");
  EXPECT_EQ(error_of("new_model: {widht: 64}\ndata: {files: [a.txt]}\n"),
            "f.yaml:1:13: new_model.widht: unknown key (did you mean 'width'?)");
  EXPECT_EQ(error_of("new_model: {width: wide}\ndata: {files: [a.txt]}\n"),
            "f.yaml:1:20: new_model.width: wants a whole number, found 'wide'");
  EXPECT_EQ(error_of(kNew, {"new_model.tied=1"}),
            "--set: new_model.tied: wants true or false, found '1'");
  EXPECT_EQ(error_of(kNew, {"new_model.tied='true'"}),
            "--set: new_model.tied: wants true or false, found 'true'");
  EXPECT_EQ(error_of(kNew, {"new_model.vocab_size=259"}),
            "--set: new_model.vocab_size: wants 260 to 1048576, found '259'");
  EXPECT_EQ(error_of(kNew, {"new_model.architecture=lama"}),
            "--set: new_model.architecture: wants one of llama, found 'lama' (did you mean "
            "'llama'?)");
  EXPECT_EQ(error_of(kNew, {"new_model.heads=5"}),
            "--set: new_model.heads: must divide new_model.width 64, found 5");
  EXPECT_EQ(error_of(kNew, {"new_model.heads=64"}),
            "--set: new_model.heads: 64 heads of a width of 64 are 1 wide each; rotary positions "
            "want an even number");
  EXPECT_EQ(error_of(kNew, {"new_model.kv_heads=3"}),
            "--set: new_model.kv_heads: must divide new_model.heads 4, found 3");
  EXPECT_EQ(error_of(kNew, {"new_model.context=256"}),
            "f.yaml: data.sequence_length: 512 is more than new_model.context 256");
  EXPECT_EQ(error_of(kNew, {"loss.kind=kl"}),
            "--set: loss.kind: wants ce, found kl: a new model has nothing to teach");
}

TEST_F(ConfigTest, TypesOfSingleTensors) {
  const RunConfig config =
      parse_config(kSmall +
                       "quant: {type: Q2_0, pure: true, output_tensor_type: Q8_0, "
                       "token_embedding_type: Q4_0}\n",
                   "f.yaml");
  const PlanOptions options = plan_options(config);
  EXPECT_EQ(options.type_name, "Q2_0");
  EXPECT_TRUE(options.pure);
  EXPECT_EQ(options.output_type, GgmlType::kQ8_0);
  EXPECT_EQ(options.token_embedding_type, GgmlType::kQ4_0);
  const PlanOptions none = plan_options(parse_config(kSmall, "f.yaml"));
  EXPECT_FALSE(none.pure || none.output_type || none.token_embedding_type);
  EXPECT_NE(error_of(kSmall + "quant: {output_tensor_type: Q8_O}\n").find("did you mean 'Q8_0'"),
            std::string::npos);
  EXPECT_EQ(error_of(kSmall, {"quant.type=none", "quant.pure=true"}),
            "--set: quant.pure: has no effect, since quant.type is none");
}

TEST_F(ConfigTest, RanksAreOfLora) {
  const TrainOptions lora =
      parse_config(kSmall + "quant: {weights: lora, lora_rank: 4}\n", "f.yaml").train;
  EXPECT_EQ(lora.quant.weights, "lora");
  EXPECT_EQ(lora.quant.lora_rank, 4);
  EXPECT_EQ(error_of(kSmall + "quant: {lora_rank: 4}\n"),
            "f.yaml:4:20: quant.lora_rank: has no effect, since quant.weights is not lora");
}

TEST_F(ConfigTest, TypesOfNamedTensors) {
  std::ofstream("sub/types.txt") << "ffn_down=Q6_K\n^blk\\.0\\.=q8_0 attn_v=Q5_K\n";
  const RunConfig config = parse_config(
      kSmall + "quant: {type: Q2_K, tensor_type: [attn_v=Q4_K], tensor_types: types.txt}\n",
      "sub/f.yaml");
  const TensorTypes wanted = {{"attn_v", GgmlType::kQ4_K},
                              {"ffn_down", GgmlType::kQ6_K},
                              {"^blk\\.0\\.", GgmlType::kQ8_0},
                              {"attn_v", GgmlType::kQ5_K}};
  EXPECT_EQ(plan_options(config).tensor_types, wanted) << "the list comes before the file";
  const std::string once = config_yaml(config);
  EXPECT_EQ(plan_options(parse_config(once, "other.yaml")).tensor_types, wanted) << once;
  EXPECT_TRUE(plan_options(parse_config(kSmall, "f.yaml")).tensor_types.empty());

  EXPECT_EQ(error_of(kSmall + "quant: {tensor_type: [attn_v]}\n"),
            "f.yaml:4:22: quant.tensor_type: wants NAME=TYPE, found 'attn_v'");
  EXPECT_EQ(error_of(kSmall + "quant: {tensor_types: nowhere.txt}\n"),
            "f.yaml:4:23: quant.tensor_types: no such file: nowhere.txt");
  std::ofstream("wrong.txt") << "attn_v=Q9\n";
  EXPECT_EQ(error_of(kSmall + "quant: {tensor_types: wrong.txt}\n"),
            "f.yaml:4:23: quant.tensor_types: wrong.txt: unknown tensor type 'Q9'");
  EXPECT_EQ(error_of(kSmall, {"quant.type=none", "quant.tensor_type=[a=Q4_0]"}),
            "--set: quant.tensor_type: has no effect, since quant.type is none");
}

TEST_F(ConfigTest, ScalesAloneAndAFileToStartFrom) {
  const std::string repair = kSmall + "quant: {weights: scales}\ninit: {file: only_there.gguf}\n";
  const RunConfig config = parse_config(repair, "sub/f.yaml");
  EXPECT_EQ(config.train.quant.weights, "scales");
  EXPECT_EQ(config.init_file(), "sub/only_there.gguf");
  const std::string once = config_yaml(config);
  EXPECT_EQ(config_yaml(parse_config(once, "other.yaml")), once);
  EXPECT_EQ(once.find("learning_rate: 1e-04"), std::string::npos) << once;
  EXPECT_TRUE(parse_config(kSmall, "f.yaml").init_file().empty());

  EXPECT_EQ(error_of(kSmall + "init: {file: m.gguf}\n"),
            "f.yaml:4:14: init.file: keeps the file's codes, so it wants quant.weights: scales");
  EXPECT_EQ(error_of(kSmall, {"quant.weights=scales", "init.file=n.gguf"}),
            "--set: init.file: no such file: n.gguf");
  EXPECT_EQ(error_of(kSmall, {"quant.weights=scales", "init.file=m.gguf", "quant.type=Q4_0"}),
            "--set: quant.type: has no effect, since init.file gives types, codes and scales");
  for (const std::string key : {"quant.scales=learned", "optimizer.learning_rate=1e-3"})
    EXPECT_EQ(error_of(kSmall, {"quant.weights=scales", key}),
              "--set: " + key.substr(0, key.find('=')) +
                  ": has no effect, since quant.weights is scales: nothing else trains");
  // Before it, block by block, everything trains.
  EXPECT_EQ(
      error_of(kSmall, {"quant.weights=scales", "quant.scales=learned", "blockwise.tokens=4096"}),
      "no error");
  EXPECT_EQ(error_of(kNew, {"init.file=m.gguf"}),
            "--set: init.file: has no effect, since quant.type is none");
}

TEST_F(ConfigTest, OverridesWin) {
  const RunConfig config =
      parse_config(kSmall + "seed: 1\n", "f.yaml",
                   {"seed=7", "data.files=[a.txt, b.txt]", "name=x", "prompts=[\"a: b\", c]"});
  EXPECT_EQ(config.train.seed, 7u);
  EXPECT_EQ(config.train.data.files.size(), 2u);
  EXPECT_EQ(config.output, "runs/x");
  EXPECT_EQ(config.prompts, (std::vector<std::string>{"a: b", "c"}));
  const RunConfig grouped = parse_config(
      kSmall, "f.yaml",
      {"loss={kind: mix, ce_weight: 0.25}", "compare={text: a.txt, types: [Q4_0, Q8_0]}"});
  EXPECT_EQ(grouped.train.loss.kind, "mix");
  EXPECT_EQ(grouped.train.loss.ce_weight, 0.25);
  EXPECT_EQ(grouped.compare.types, (std::vector<std::string>{"Q4_0", "Q8_0"}));
  EXPECT_EQ(error_of(kSmall, {"loss=ce"}), "--set: loss: wants a group of keys, found 'ce'");
  EXPECT_EQ(error_of(kSmall, {"loss={kindd: ce}"}),
            "--set: loss.kindd: unknown key (did you mean 'kind'?)");
  EXPECT_EQ(error_of(kSmall, {"seed"}), "--set seed: wants key=value");
  EXPECT_EQ(error_of(kSmall, {"seed=x"}),
            "--set: seed: wants a whole number, 0 or more, found 'x'");
}

TEST_F(ConfigTest, ResolvedConfigReadsBackToItself) {
  const std::string made = config_yaml(parse_config(kNew, "f.yaml"));
  EXPECT_EQ(config_yaml(parse_config(made, "other.yaml")), made);
  EXPECT_NE(made.find("new_model:\n  architecture: llama\n"), std::string::npos) << made;
  EXPECT_EQ(made.find("\nmodel:"), std::string::npos) << made;
  EXPECT_EQ(config_yaml(parse_config(kSmall, "f.yaml")).find("new_model"), std::string::npos);
  const std::vector<std::string> endings = {
      "quant: {pure: true, output_tensor_type: Q8_0}\n",
      "",
      "quant: {scales: dynamic}\n",
      "quant: {tensor_type: [attn_v=Q8_0]}\n",
      "quant: {type: none}\n",
      "blockwise: {tokens: 4096, epochs: 3}\n",
      "loss: {kind: mix, ce_weight: 0.1}\noptimizer: {learning_rate: 3e-5}\n",
      "prompts: ['def f(x):\n\n  return', '<|im_start|>']\ncompare: {text: b.txt}\n"};
  for (const std::string& extra : endings) {
    const std::string once = config_yaml(parse_config(kSmall + extra, "f.yaml"));
    EXPECT_EQ(config_yaml(parse_config(once, "other.yaml")), once) << extra;
  }
}

TEST_F(ConfigTest, EveryKeyCanBeSetToItsOwnDefault) {
  // One test for the whole schema: the default of each field is within its range and choices.
  const std::set<std::string> depend = {
      "loss.ce_weight",  "data.text_field", "quant.calibration_tokens", "data.answers_only",
      "quant.lora_rank", "self.tokens",     "self.temperature",         "self.at_once"};
  for (const std::string& line : config_keys()) {
    const std::string key = line.substr(0, line.find(':'));
    const std::string value = line.substr(line.find(':') + 2);
    if (value == "\"\"" || value == "[]" || key == "output" || depend.count(key)) continue;
    if (key.starts_with("new_model.")) continue;  // in the place of a model, and all of it
    EXPECT_NO_THROW(parse_config(
        kSmall, "f.yaml",
        {"compare.text=b.txt", "prompts=[p]", "blockwise.tokens=4096", key + "=" + value}))
        << line;
  }
}

TEST_F(ConfigTest, TextThatTheModelWrites) {
  const std::string self = kSmall + "self: {tokens: 5000}\n";
  const RunConfig config = parse_config(self, "f.yaml", {"data.files=[self, a.txt]"});
  EXPECT_TRUE(config.writes_text());
  EXPECT_EQ(config.self.tokens, 5000);
  // As it is written back once the file has taken the entry's place.
  RunConfig written = config;
  written.train.data.files[0] = self_text_path(config.output);
  const RunConfig again = parse_config(config_yaml(written), "f.yaml");
  EXPECT_EQ(again.train.data.files, config.train.data.files);
  EXPECT_EQ(again.self, config.self);

  const auto contains = [](const std::string& text, const std::string& part) {
    EXPECT_NE(text.find(part), std::string::npos) << text;
  };
  contains(error_of(self, {}), "self.tokens: has no effect, since data.files does not name self");
  contains(error_of(kSmall, {"data.files=[self]"}), "self.tokens: is missing and has no default");
  contains(error_of(self, {"data.files=[self, self]"}), "data.files: names self twice");
  contains(error_of(self, {"data.files=[self]", "data.format=chat"}), "self.prompts: is missing");
  contains(error_of(self, {"data.files=[self]", "self.prompts=nowhere"}),
           "self.prompts: no such file: nowhere");
  const std::vector<std::string> server = {"data.files=[self]", "self.endpoint=https://here/v1"};
  contains(error_of(self, server), "self.prompts: is missing: a server goes on from prompts only");
  contains(error_of(self, {"data.files=[self]", "self.model=m"}),
           "self.model: has no effect, since self.endpoint is not set");
}

TEST_F(ConfigTest, MissingConfigurationFile) {
  try {
    load_config("nowhere.yaml");
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "nowhere.yaml: no such configuration file");
    EXPECT_EQ(error.exit_code(), 2);
  }
}

}  // namespace
}  // namespace nibble
