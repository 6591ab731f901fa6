#include "model/chat/conversation.h"

#include <array>
#include <string>

#include "base/error.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

/// Of what a row holds: copies and templates go down by calls.
constexpr int kMaxNesting = 64;

void check_nesting(const Json& value, int levels = kMaxNesting) {
  if (!value.is_structured()) return;
  check(levels > 0, "is nested more than ", kMaxNesting, " levels deep");
  for (const Json& inner : value) check_nesting(inner, levels - 1);
}

std::string text_at(const Json& object, const char* key) {
  const auto found = object.find(key);
  check(found != object.end(), "'", key, "' is missing");
  check(found->is_string(), "'", key, "' wants a string, found ", found->type_name());
  return found->get<std::string>();
}

/// A part of a message: {"type": "text", "text": ...}, or "value" in its place.
std::string part_text(const Json& part) {
  check(part.is_object(), "a part of 'content' wants an object, found ", part.type_name());
  const std::string type = text_at(part, "type");
  check(type == "text", "a part of 'content' is of type '", type, "'; only text can be trained");
  return text_at(part, part.contains("text") ? "text" : "value");
}

Json read_message(const Json& message) {
  check(message.is_object(), "wants an object, found ", message.type_name());
  text_at(message, "role");
  Json read = message;
  read.erase("loss_weight");
  const auto content = message.find("content");
  if (content == message.end()) {
    check(message.contains("tool_calls"), "'content' is missing");
    read["content"] = "";
    return read;
  }
  if (content->is_null() || content->is_string()) {
    if (content->is_null()) read["content"] = "";
    return read;
  }
  check(content->is_array(), "'content' wants a string or a list of parts, found ",
        content->type_name());
  std::string text;
  for (const Json& part : *content) text += part_text(part);
  read["content"] = text;
  return read;
}

bool is_trained(const Json& message) {
  const auto weight = message.find("loss_weight");
  if (weight == message.end()) return message["role"] == "assistant";
  check(weight->is_number(), "'loss_weight' wants a number, found ", weight->type_name());
  const double value = weight->get<double>();
  check(value == 0 || value == 1, "'loss_weight' wants 0 or 1, found ", value);
  return message["role"] == "assistant" && value == 1;
}

/// ShareGPT's name of a role.
std::string role_of(const std::string& from) {
  constexpr std::array<std::array<const char*, 2>, 9> kRoles = {{{"human", "user"},
                                                                 {"user", "user"},
                                                                 {"gpt", "assistant"},
                                                                 {"chatgpt", "assistant"},
                                                                 {"assistant", "assistant"},
                                                                 {"bot", "assistant"},
                                                                 {"system", "system"},
                                                                 {"tool", "tool"},
                                                                 {"observation", "tool"}}};
  for (const auto& [name, role] : kRoles)
    if (from == name) return role;
  fail("'from' is '", from, "', which is none of human, gpt, system, tool and their like");
}

Json message(const std::string& role, const std::string& content) {
  return {{"role", role}, {"content", content}};
}

Json sharegpt_messages(const Json& turns) {
  Json messages = Json::array();
  for (size_t i = 0; i < turns.size(); ++i)
    with_frame(concat("turn ", i + 1), [&] {
      check(turns[i].is_object(), "wants an object, found ", turns[i].type_name());
      messages.push_back(message(role_of(text_at(turns[i], "from")), text_at(turns[i], "value")));
    });
  return messages;
}

/// With the turns before it, pairs of a question and its answer.
Json alpaca_messages(const Json& row) {
  Json messages = Json::array();
  const Json history = row.value("history", Json());
  check(history.is_null() || history.is_array(), "'history' wants a list, found ",
        history.type_name());
  for (const Json& turn : history) {
    check(turn.is_array() && turn.size() == 2 && turn[0].is_string() && turn[1].is_string(),
          "a turn of 'history' wants a question and its answer, two strings");
    messages.push_back(message("user", turn[0]));
    messages.push_back(message("assistant", turn[1]));
  }
  std::string question = text_at(row, "instruction");
  const bool has_input = row.contains("input") && !row["input"].is_null();
  const std::string input = has_input ? text_at(row, "input") : "";
  if (!input.empty()) question += '\n' + input;
  messages.push_back(message("user", question));
  messages.push_back(message("assistant", text_at(row, "output")));
  return messages;
}

const Json& list_at(const Json& row, const char* key) {
  check(row[key].is_array(), "'", key, "' wants a list, found ", row[key].type_name());
  return row[key];
}

/// The row's messages, whatever it calls them.
Json row_messages(const Json& row) {
  if (row.contains("messages")) return list_at(row, "messages");
  if (row.contains("conversations")) {
    const Json& turns = list_at(row, "conversations");
    const bool has_roles = !turns.empty() && turns[0].is_object() && turns[0].contains("role");
    return has_roles ? turns : sharegpt_messages(turns);
  }
  if (row.contains("instruction")) return alpaca_messages(row);
  if (row.contains("prompt"))
    return {
        message("user", text_at(row, "prompt")),
        message("assistant", text_at(row, row.contains("completion") ? "completion" : "response"))};
  fail("this row has none of 'messages', 'conversations', 'instruction' and 'prompt'");
}

/// A list of objects, or a text that holds one, as many data sets have it.
Json read_tools(const Json& given) {
  if (given.is_null()) return nullptr;
  const Json tools = given.is_string() ? Json::parse(given.get<std::string>(), nullptr,
                                                     /*allow_exceptions=*/false)
                                       : given;
  check(!tools.is_discarded(), "'tools' is a string that is no JSON");
  with_frame("'tools'", [&] { check_nesting(tools); });
  if (tools.is_null()) return nullptr;
  check(tools.is_array(), "'tools' wants a list, found ", tools.type_name());
  for (const Json& tool : tools)
    check(tool.is_object(), "'tools' wants objects, found ", tool.type_name());
  return tools;
}

}  // namespace

Conversation read_conversation(const Json& row) {
  check(row.is_object(), "wants a JSON object, found ", row.type_name());
  check_nesting(row);
  Json messages = row_messages(row);
  if (row.contains("system") && !row["system"].is_null() && !text_at(row, "system").empty())
    messages.insert(messages.begin(), message("system", text_at(row, "system")));
  Conversation conversation;
  conversation.messages = Json::array();
  bool any = false;
  for (size_t i = 0; i < messages.size(); ++i)
    with_frame(concat("message ", i + 1), [&] {
      conversation.messages.push_back(read_message(messages[i]));
      conversation.trained.push_back(is_trained(messages[i]));
      any = any || conversation.trained.back();
    });
  check(any, "no message of this row is an assistant's to train on");
  if (row.contains("tools")) conversation.tools = read_tools(row["tools"]);
  return conversation;
}

}  // namespace nibble
