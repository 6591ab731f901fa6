#include "training/self_endpoint.h"

#include "base/error.h"
#include "training/http_client.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

Json body_of(const EndpointOptions& endpoint, const CompletionRequest& request) {
  Json body = {{"max_tokens", request.max_tokens},
               {"temperature", request.temperature},
               {"seed", request.seed & 0x7fffffff},
               {"top_p", 1},
               {"top_k", 0},
               {"min_p", 0},
               {"repeat_penalty", 1},
               {"stream", false}};
  if (!endpoint.model.empty()) body["model"] = endpoint.model;
  return body;
}

const nlohmann::json& first_choice(const nlohmann::json& answer) {
  const auto choices = answer.find("choices");
  check(choices != answer.end() && choices->is_array() && !choices->empty() &&
            choices->front().is_object(),
        "the answer has no list of choices");
  return choices->front();
}

const std::string& string_of(const nlohmann::json& object, const char* key) {
  const auto found = object.find(key);
  check(found != object.end() && found->is_string(), "the answer's choice has no string '", key,
        "'");
  return found->get_ref<const std::string&>();
}

Json message_of(const nlohmann::json& choice) {
  const auto message = choice.find("message");
  check(message != choice.end() && message->is_object(), "the answer's choice has no message");
  Json kept = {{"role", "assistant"}, {"content", string_of(*message, "content")}};
  if (message->contains("reasoning_content") && (*message)["reasoning_content"].is_string())
    kept["reasoning_content"] = (*message)["reasoning_content"];
  return kept;
}

}  // namespace

Completion complete(const EndpointOptions& endpoint, const SelfPrompt& prompt,
                    const CompletionRequest& request, const std::atomic<bool>& stop) {
  Json body = body_of(endpoint, request);
  const bool is_chat = !prompt.row.is_null();
  if (is_chat)
    body.update(prompt.row);  // messages, and tools where there are
  else
    body["prompt"] = prompt.text;
  const std::string url = endpoint.url + (is_chat ? "/chat/completions" : "/completions");
  const nlohmann::json answer = post_json(url, body, stop);
  return with_frame(url, [&] {
    const nlohmann::json& choice = first_choice(answer);
    Completion completion;
    if (is_chat)
      completion.message = message_of(choice);
    else
      completion.text = string_of(choice, "text");
    completion.has_end = string_of(choice, "finish_reason") == "stop";
    return completion;
  });
}

}  // namespace nibble
