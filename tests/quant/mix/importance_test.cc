#include "quant/mix/importance.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace nibble {
namespace {

constexpr int kQ2_K_S = 21;

Imatrix some_imatrix() {
  Imatrix imatrix;
  imatrix.path = "im.gguf";
  imatrix.entries = {{"blk.0.attn_q.weight", {{2, 4}, {2}}},
                     {"blk.0.ffn_up_exps.weight", {{2, 4, 0, 0, 6, 8}, {2, 0, 4}}},
                     {"blk.1.attn_q.weight", {{1, 1}, {1}}}};
  return imatrix;
}

PlanEntry entry_of(const std::string& tensor, std::vector<int64_t> shape,
                   GgmlType target = GgmlType::kQ4_0) {
  return {tensor, std::move(shape), GgmlType::kF32, target, ""};
}

/// "usage: ..." or the message itself, or "" where nothing is thrown.
template <class Body>
std::string complaint(const Body& body) {
  try {
    body();
    return "";
  } catch (const Error& error) {
    return (error.kind() == ErrorKind::kUsage ? "usage: " : "") + std::string(error.what());
  }
}

std::vector<std::string> names_after(const std::vector<std::string>& include,
                                     const std::vector<std::string>& exclude) {
  Imatrix imatrix = some_imatrix();
  select_entries(imatrix, include, exclude);
  std::vector<std::string> names;
  for (const auto& [name, entry] : imatrix.entries) names.push_back(name);
  return names;
}

Plan plan_of(const char* type_name, int file_type, std::vector<PlanEntry> entries) {
  Plan plan;
  plan.type_name = type_name;
  plan.file_type = file_type;
  plan.entries = std::move(entries);
  return plan;
}

TEST(Importance, EntriesAreSelectedByPartsOfTheirNames) {
  using Names = std::vector<std::string>;
  const Names all = {"blk.0.attn_q.weight", "blk.0.ffn_up_exps.weight", "blk.1.attn_q.weight"};
  EXPECT_EQ(names_after({}, {}), all);
  EXPECT_EQ(names_after({"attn_q"}, {}), (Names{all[0], all[2]}));
  EXPECT_EQ(names_after({"blk.1.", "ffn"}, {}), (Names{all[1], all[2]}));
  EXPECT_EQ(names_after({}, {"blk.0."}), (Names{all[2]}));
  EXPECT_EQ(names_after({}, {"blk"}), Names{});
  EXPECT_EQ(complaint([] { names_after({"attn_k"}, {}); }),
            "usage: im.gguf: no entry's name has 'attn_k' in it");
  EXPECT_EQ(complaint([] { names_after({}, {"blk.2"}); }),
            "usage: im.gguf: no entry's name has 'blk.2' in it");
}

TEST(Importance, IsThatOfTheTensorsOwnColumns) {
  const Imatrix imatrix = some_imatrix();
  EXPECT_EQ(importance_of(entry_of("blk.0.attn_q.weight", {2, 9}), &imatrix),
            (std::vector<float>{1, 2}));
  EXPECT_EQ(importance_of(entry_of("blk.0.ffn_up_exps.weight", {2, 5, 3}), &imatrix),
            (std::vector<float>{1, 2, 1, 1, 1.5f, 2}));
  EXPECT_TRUE(importance_of(entry_of("blk.7.attn_q.weight", {2, 9}), &imatrix).empty());
  EXPECT_TRUE(importance_of(entry_of("blk.0.attn_q.weight", {2, 9}), nullptr).empty());
}

TEST(Importance, AnEntryOfAnotherSizeIsRefused) {
  Imatrix imatrix = some_imatrix();
  const std::string line = "im.gguf: entry 'blk.0.attn_q.weight' has 2 columns, wanted 3";
  EXPECT_EQ(complaint([&] {
              importance_of(entry_of("blk.0.attn_q.weight", {3, 9}), &imatrix);
            }),
            line);
  Plan plan = plan_of("Q4_0", 2, {entry_of("blk.0.attn_q.weight", {3, 9})});
  EXPECT_EQ(complaint([&] { check_importance(plan, &imatrix); }), line);
  plan.entries[0].target = plan.entries[0].source;  // copied: nothing to weigh
  EXPECT_EQ(complaint([&] { check_importance(plan, &imatrix); }), "");
  // As many numbers as tokens, which llama-quantize passes over as well.
  imatrix.entries["token_embd.weight"] = {{1, 2, 3}, {1}};
  EXPECT_TRUE(importance_of(entry_of("token_embd.weight", {2, 3}), &imatrix).empty());
}

TEST(Importance, SomeTypesCannotDoWithout) {
  const auto needs = [](const std::string& tensor, GgmlType target, int file_type) {
    return needs_importance(entry_of(tensor, {256, 2}, target), file_type);
  };
  const std::string inner = "blk.0.attn_q.weight";
  for (const GgmlType type : {GgmlType::kIQ1_S, GgmlType::kIQ1_M, GgmlType::kIQ2_XXS,
                              GgmlType::kIQ2_XS, GgmlType::kIQ2_S, GgmlType::kIQ3_XXS}) {
    EXPECT_TRUE(needs(inner, type, 0));
    EXPECT_FALSE(needs("output.weight", type, 0));
    EXPECT_FALSE(needs("token_embd.weight", type, 0));
    EXPECT_FALSE(needs_importance({inner, {256, 2}, type, type, ""}, 0));
  }
  EXPECT_TRUE(needs(inner, GgmlType::kQ2_K, kQ2_K_S));
  EXPECT_FALSE(needs(inner, GgmlType::kQ2_K, 10));
  EXPECT_FALSE(needs(inner, GgmlType::kIQ3_S, 0));
}

TEST(Importance, ATensorThatCannotDoWithoutIsRefused) {
  const Plan plan =
      plan_of("Q2_K_S", kQ2_K_S, {entry_of("blk.0.attn_q.weight", {2, 9}, GgmlType::kQ2_K)});
  EXPECT_EQ(complaint([&] { check_importance(plan, nullptr); }),
            "tensor 'blk.0.attn_q.weight': Q2_K in Q2_K_S is garbage without an importance matrix, "
            "and none was given (nibble imatrix makes one, --imatrix takes it)");
  Imatrix imatrix = some_imatrix();
  EXPECT_EQ(complaint([&] { check_importance(plan, &imatrix); }), "");
  Plan two = plan;
  two.entries.push_back(entry_of("blk.2.attn_q.weight", {2, 9}, GgmlType::kQ2_K));
  EXPECT_EQ(complaint([&] { check_importance(two, &imatrix); }),
            "tensor 'blk.2.attn_q.weight': Q2_K in Q2_K_S is garbage without an importance matrix, "
            "and im.gguf has no entry for it");
}

TEST(Importance, AnImatrixOfAnotherModelIsRefused) {
  const Imatrix imatrix = some_imatrix();
  const Plan plan = plan_of("Q4_0", 2, {entry_of("blk.9.attn_q.weight", {2, 9})});
  EXPECT_EQ(complaint([&] { check_importance(plan, &imatrix); }),
            "im.gguf: no entry is one of this model's tensors");
  EXPECT_EQ(complaint([&] { check_importance(plan, nullptr); }), "");
}

TEST(Importance, NotesNameWhatHasNone) {
  const Plan plan =
      plan_of("Q4_0", 2,
              {entry_of("token_embd.weight", {2, 9}), entry_of("output.weight", {2, 9}),
               entry_of("blk.0.attn_q.weight", {2, 9}), entry_of("blk.2.attn_q.weight", {2, 9}),
               entry_of("blk.3.attn_q.weight", {2, 9}),
               entry_of("blk.4.attn_q.weight", {2, 9}, GgmlType::kF16),
               entry_of("blk.0.ffn_up_exps.weight", {2, 5, 3})});
  EXPECT_EQ(importance_notes(plan, some_imatrix()),
            (std::vector<std::string>{
                "im.gguf: blk.0.ffn_up_exps.weight: no activation reached expert 1; all columns "
                "count alike there",
                "im.gguf: no entry, so no importance, for blk.2.attn_q.weight, "
                "blk.3.attn_q.weight"}));
}

TEST(Importance, KeysAreLlamaQuantizes) {
  Imatrix imatrix = some_imatrix();
  imatrix.path = std::string(200, 'p');
  imatrix.datasets = {"first.txt", "second.txt"};
  imatrix.chunk_count = 12;
  GgufMetadata metadata;
  metadata.set("quantize.imatrix.entries_count", uint32_t{99});
  metadata.set("general.name", std::string("model"));
  set_imatrix_keys(metadata, imatrix);
  const std::vector<std::pair<std::string, GgufValue>> wanted = {
      {"general.name", std::string("model")},
      {"quantize.imatrix.file", std::string(127, 'p')},
      {"quantize.imatrix.dataset", std::string("first.txt")},
      {"quantize.imatrix.entries_count", uint32_t{3}},
      {"quantize.imatrix.chunks_count", uint32_t{12}}};
  EXPECT_EQ(metadata.pairs(), wanted);
  imatrix.datasets.clear();
  imatrix.chunk_count = 0;
  GgufMetadata little;
  set_imatrix_keys(little, imatrix);
  EXPECT_EQ(little.pairs().size(), 2u);
}

}  // namespace
}  // namespace nibble
