// Conversations as tokens, and rows as conversations. Templates themselves are compared with Jinja
// in tests/interop/test_chat.py.
#include "model/chat/chat_tokens.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>

#include "base/error.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

/// One token for each word or sign of "[user]", "[assistant]", "[end]"; single bytes else. Adds BOS
/// (1000) where asked to.
class SignTokenizer : public Tokenizer {
 public:
  explicit SignTokenizer(bool add_bos) : add_bos_(add_bos) {}
  std::vector<int32_t> encode(std::string_view text, bool add_special, bool) const override {
    std::vector<int32_t> ids;
    if (add_special && add_bos_) ids.push_back(bos());
    while (!text.empty()) {
      size_t sign = 0;
      while (sign < kSigns.size() && !text.starts_with(kSigns[sign])) ++sign;
      const bool is_sign = sign < kSigns.size();
      ids.push_back(is_sign ? 1000 + static_cast<int32_t>(sign)
                            : static_cast<unsigned char>(text[0]));
      text.remove_prefix(is_sign ? kSigns[sign].size() : 1);
    }
    return ids;
  }
  std::string decode(const std::vector<int32_t>& ids, bool) const override {
    std::string text;
    for (const int32_t id : ids) {
      if (id >= 1000)
        text += kSigns[static_cast<size_t>(id - 1000)];
      else
        text += static_cast<char>(id);
    }
    return text;
  }
  std::vector<size_t> byte_ends(const std::vector<int32_t>& ids) const override {
    std::vector<size_t> ends;
    for (size_t i = 1; i <= ids.size(); ++i)
      ends.push_back(
          decode({ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(i)}, true).size());
    return ends;
  }
  int64_t vocab_size() const override { return 1004; }
  int32_t bos() const override { return 1000; }
  int32_t eos() const override { return 1003; }
  bool add_bos() const override { return add_bos_; }
  bool is_end_of_generation(int32_t id) const override { return id == eos(); }

 private:
  static constexpr std::array<std::string_view, 4> kSigns = {"[bos]", "[user]", "[assistant]",
                                                             "[end]"};
  bool add_bos_;
};

const std::string kPlain =
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}[end]{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}";

Conversation conversation(std::initializer_list<std::pair<const char*, const char*>> messages) {
  Json row = {{"messages", Json::array()}};
  for (const auto& [role, content] : messages)
    row["messages"].push_back({{"role", role}, {"content", content}});
  return read_conversation(row);
}

std::string said(const ChatTokens& tokens) {
  std::vector<int32_t> ids;
  for (size_t i = 0; i < tokens.ids.size(); ++i)
    if (tokens.trained[i]) ids.push_back(tokens.ids[i]);
  return SignTokenizer(false).decode(ids, true);
}

TEST(ChatTokens, AnswersCountUpToTheirEnd) {
  const SignTokenizer tokenizer(false);
  const auto texts = tokenize_chat(
      conversation({{"user", "hi"}, {"assistant", "yes"}, {"user", "and"}, {"assistant", "no"}}),
      ChatTemplate(kPlain, "", ""), tokenizer);
  ASSERT_EQ(texts.size(), 1u);
  EXPECT_EQ(tokenizer.decode(texts[0].ids, true),
            "[user]hi[end][assistant]yes[end][user]and[end][assistant]no[end]");
  EXPECT_EQ(said(texts[0]), "yes[end]no[end]");
}

/// Text comes out in lower case, without the space behind a sign; an EOS is added.
class LossyTokenizer final : public SignTokenizer {
 public:
  LossyTokenizer() : SignTokenizer(/*add_bos=*/true) {}
  std::vector<int32_t> encode(std::string_view text, bool add_special, bool parse) const override {
    std::vector<int32_t> ids;
    for (const int32_t id : SignTokenizer::encode(text, add_special, parse)) {
      if (id == ' ' && !ids.empty() && ids.back() >= 1000) continue;
      ids.push_back(id < 1000 ? std::tolower(id) : id);
    }
    if (add_special) ids.push_back(eos());
    return ids;
  }
};

TEST(ChatTokens, AnswersAreFoundInTextThatDoesNotComeBack) {
  const auto texts = tokenize_chat(
      conversation({{"user", "Hi"}, {"assistant", "YES"}, {"user", "and"}, {"assistant", " No"}}),
      ChatTemplate("{% for m in messages %}[{{ m.role }}] {{ m.content }}[end]{% endfor %}"
                   "{% if add_generation_prompt %}[assistant] {% endif %}",
                   "[bos]", "[end]"),
      LossyTokenizer());
  ASSERT_EQ(texts.size(), 1u);
  EXPECT_EQ(said(texts[0]), "yes[end]no[end]");
}

TEST(ChatTokens, ThereIsOneBos) {
  for (const char* own : {"", "{{ bos_token }}"})
    for (const bool adds : {false, true}) {
      const SignTokenizer tokenizer(adds);
      const auto texts = tokenize_chat(conversation({{"user", "hi"}, {"assistant", "yes"}}),
                                       ChatTemplate(own + kPlain, "[bos]", ""), tokenizer);
      const bool wanted = adds || *own;
      EXPECT_EQ(std::count(texts[0].ids.begin(), texts[0].ids.end(), tokenizer.bos()),
                wanted ? 1 : 0);
      EXPECT_EQ(texts[0].ids[0] == tokenizer.bos(), wanted);
      EXPECT_EQ(said(texts[0]), "yes[end]");
    }
}

TEST(ChatTokens, AMessageWithALossWeightOfZeroDoesNotCount) {
  Json row = {{"messages", Json::array()}};
  for (const double weight : {0.0, 1.0}) {
    row["messages"].push_back({{"role", "user"}, {"content", "hi"}});
    row["messages"].push_back({{"role", "assistant"}, {"content", "yes"}, {"loss_weight", weight}});
  }
  const auto texts =
      tokenize_chat(read_conversation(row), ChatTemplate(kPlain, "", ""), SignTokenizer(false));
  EXPECT_EQ(said(texts[0]), "yes[end]");
}

TEST(ChatTokens, AnAnswerIsTrainedAsItIsWrittenWhenItIsTheLast) {
  // As Qwen3's: the last answer begins with an empty thought, which a model is to write itself; in
  // those before it is left out.
  const std::string thoughtful =
      "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' and loop.last "
      "%}<think/>{% endif %}{{ m.content }}[end]{% endfor %}"
      "{% if add_generation_prompt %}[assistant]{% endif %}";
  const SignTokenizer tokenizer(false);
  const auto texts = tokenize_chat(
      conversation({{"user", "hi"}, {"assistant", "yes"}, {"user", "and"}, {"assistant", "no"}}),
      ChatTemplate(thoughtful, "", ""), tokenizer);
  ASSERT_EQ(texts.size(), 2u);
  EXPECT_EQ(said(texts[0]), "<think/>yes[end]");
  EXPECT_EQ(said(texts[1]), "<think/>no[end]");
  EXPECT_EQ(tokenizer.decode(texts[1].ids, true),
            "[user]hi[end][assistant]yes[end][user]and[end][assistant]<think/>no[end]");
}

TEST(ChatTemplate, MetadataWithoutOneIsAnError) {
  try {
    ChatTemplate::from_metadata(GgufMetadata{}, SignTokenizer(false));
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("the model has no chat template"), std::string::npos);
  }
}

}  // namespace
}  // namespace nibble
