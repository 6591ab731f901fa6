#include "export/modelfile.h"

#include <memory>
#include <set>
#include <sstream>
#include <utility>
#include <vector>

#include "base/error.h"
#include "model/tokenizer.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;
using Conversation = std::vector<std::pair<std::string, std::string>>;  // role, content

std::string render(const ChatTemplate& chat, const Conversation& conversation, bool answer) {
  Json messages = Json::array();
  for (const auto& [role, content] : conversation)
    messages.push_back({{"role", role}, {"content", content}});
  return chat.render({std::move(messages), {}, answer});
}

std::string framed(const ChatFrame& frame, const Conversation& conversation, bool answer) {
  std::string text;
  for (const auto& [role, content] : conversation)
    for (const ChatFrame::Role& of : frame.roles)
      if (of.name == role) text += of.before + content + of.after;
  return answer ? text + frame.generation : text;
}

/// Splits `text` at its first `mark`; false where there is none.
bool split_at(const std::string& text, const std::string& mark, std::string& before,
              std::string& after) {
  const size_t at = text.find(mark);
  if (at == std::string::npos) return false;
  before = text.substr(0, at);
  after = text.substr(at + mark.size());
  return true;
}

/// Whether conversations of several forms are what the frame makes of them, but for the BOS in
/// front, which Ollama adds.
bool holds(const ChatFrame& frame, const ChatTemplate& chat, const std::string& bos,
           bool with_system) {
  Conversation conversation;
  if (with_system) conversation.emplace_back("system", "Be brief.");
  for (const char* text : {"What is it?", "A «test»\nof two lines", "Why?"}) {
    conversation.emplace_back("user", text);
    if (render(chat, conversation, true) != bos + framed(frame, conversation, true)) return false;
    conversation.emplace_back("assistant", std::string("As for: ") + text);
    if (render(chat, conversation, false) != bos + framed(frame, conversation, false)) return false;
  }
  return true;
}

/// A frame from three renderings: a question, with its answer, and with a system message before it.
std::optional<ChatFrame> probe(const ChatTemplate& chat, const std::string& bos, bool with_system) {
  const Conversation question = {{"user", "QUESTION"}},
                     answered = {{"user", "QUESTION"}, {"assistant", "ANSWER"}};
  ChatFrame frame;
  ChatFrame::Role system{"system", "", ""}, user{"user", "", ""}, assistant{"assistant", "", ""};
  std::string rest = render(chat, question, false);
  if (!rest.starts_with(bos) ||
      !split_at(rest.substr(bos.size()), "QUESTION", user.before, user.after))
    return std::nullopt;
  const std::string asked = bos + user.before + "QUESTION" + user.after;
  rest = render(chat, answered, false);
  if (!rest.starts_with(asked) ||
      !split_at(rest.substr(asked.size()), "ANSWER", assistant.before, assistant.after))
    return std::nullopt;
  rest = render(chat, question, true);
  if (!rest.starts_with(asked)) return std::nullopt;
  frame.generation = rest.substr(asked.size());
  if (with_system) {
    rest = render(chat, {{"system", "SYSTEM"}, {"user", "QUESTION"}}, false);
    const std::string tail = user.before + "QUESTION" + user.after;
    if (!rest.starts_with(bos) || !rest.ends_with(tail)) return std::nullopt;
    rest = rest.substr(bos.size(), rest.size() - bos.size() - tail.size());
    if (!split_at(rest, "SYSTEM", system.before, system.after)) return std::nullopt;
    frame.roles.push_back(system);
  }
  frame.roles.push_back(user);
  frame.roles.push_back(assistant);
  if (!holds(frame, chat, bos, with_system)) return std::nullopt;
  return frame;
}

/// A template's own text in Go's language: braces that would begin an action are written as an
/// action.
std::string literal(const std::string& text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool action = text.compare(i, 2, "{{") == 0;
    out += action ? "{{ \"{{\" }}" : text.substr(i, 1);
    i += action ? 1 : 0;
  }
  return out;
}

std::string go_template(const ChatFrame& frame) {
  std::string out = "{{ range .Messages }}";
  for (const ChatFrame::Role& role : frame.roles)
    out += concat(&role == &frame.roles.front() ? "{{ if" : "{{ else if", " eq .Role \"", role.name,
                  "\" }}", literal(role.before), "{{ .Content }}", literal(role.after));
  return out + "{{ end }}{{ end }}" + literal(frame.generation);
}

/// Texts of the tokens that end a generation: those that the file names, and what the template
/// puts behind an answer.
std::set<std::string> stop_words(const GgufMetadata& metadata, const Tokenizer& tokenizer,
                                 const std::string& after_answer) {
  std::set<std::string> words;
  for (const int32_t id : tokenizer.encode(after_answer, false, /*parse_special=*/true))
    if (tokenizer.is_end_of_generation(id)) words.insert(tokenizer.decode({id}, /*special=*/true));
  for (const char* key : {"eos", "eot", "eom"}) {
    const int64_t id = metadata.get_int_or(concat("tokenizer.ggml.", key, "_token_id"), -1);
    if (id >= 0 && id < tokenizer.vocab_size())
      words.insert(tokenizer.decode({static_cast<int32_t>(id)}, /*special=*/true));
  }
  return words;
}

/// Ollama's names of what general.sampling.* says.
void write_sampling(const GgufMetadata& metadata, std::ostream& out) {
  constexpr std::pair<const char*, const char*> kNames[] = {
      {"general.sampling.temp", "temperature"},
      {"general.sampling.top_p", "top_p"},
      {"general.sampling.min_p", "min_p"},
      {"general.sampling.penalty_repeat", "repeat_penalty"}};
  for (const auto& [key, name] : kNames)
    if (metadata.contains(key))
      out << "PARAMETER " << name << ' ' << metadata.get_float(key) << '\n';
  constexpr std::pair<const char*, const char*> kCounts[] = {
      {"general.sampling.top_k", "top_k"}, {"general.sampling.penalty_last_n", "repeat_last_n"}};
  for (const auto& [key, name] : kCounts)
    if (metadata.contains(key)) out << "PARAMETER " << name << ' ' << metadata.get_int(key) << '\n';
}

}  // namespace

std::optional<ChatFrame> chat_frame(const ChatTemplate& chat) {
  const std::string& bos = chat.bos();
  for (const bool with_system : {true, false})
    for (const std::string& first : {bos, std::string()}) try {
        if (auto frame = probe(chat, first, with_system)) return frame;
      } catch (const Error&) {
        // It refuses a system message, or another order of roles.
      }
  return std::nullopt;
}

std::string modelfile(const GgufFile& file, const std::string& file_name, std::string& note) {
  const GgufMetadata& metadata = file.metadata();
  const auto tokenizer = Tokenizer::from_metadata(metadata);
  std::ostringstream out;
  out << "FROM ./" << file_name << '\n';
  if (metadata.contains("tokenizer.chat_template")) {
    const auto frame = chat_frame(ChatTemplate::from_metadata(metadata, *tokenizer));
    const std::string text = frame ? go_template(*frame) : "";
    const bool written = frame && text.find("\"\"\"") == std::string::npos;
    if (written) out << "TEMPLATE \"\"\"" << text << "\"\"\"\n";
    if (!written)
      note = "the chat template is no simple frame around messages: Ollama is left to recognize it";
    const std::string after = frame ? frame->roles.back().after : "";
    for (const std::string& word : stop_words(metadata, *tokenizer, after))
      out << "PARAMETER stop \"" << word << "\"\n";
  } else {
    note = "the model has no chat template: Ollama will go on from the prompt as it is";
    out << "TEMPLATE \"\"\"{{ .Prompt }}\"\"\"\n";
  }
  write_sampling(metadata, out);
  return out.str();
}

}  // namespace nibble
