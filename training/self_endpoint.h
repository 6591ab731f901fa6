// Text that the source model writes on a server of its own: one that speaks OpenAI's API, such as
// llama-server.
#pragma once

#include <atomic>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "training/self_prompts.h"

namespace nibble {

struct EndpointOptions {
  std::string url;    // that /completions and /chat/completions follow: "http://127.0.0.1:8080/v1"
  std::string model;  // the name by which the server knows the model; "": none is sent

  bool operator==(const EndpointOptions&) const = default;
};

/// How a prompt went on, as the server says it.
struct Completion {
  nlohmann::ordered_json message;  // of chat data: role, content and, where there is, reasoning
  std::string text;                // of other data
  bool has_end = false;            // the model ended it, not max_tokens
};

struct CompletionRequest {
  int64_t max_tokens = 0;
  double temperature = 1;
  uint64_t seed = 0;
};

/// Asks /completions, or with a prompt's row /chat/completions, to sample by the model's own
/// probabilities: what servers add to the temperature is switched off. Throws as post_json() does,
/// and for an answer that has no text.
Completion complete(const EndpointOptions& endpoint, const SelfPrompt& prompt,
                    const CompletionRequest& request, const std::atomic<bool>& stop);

}  // namespace nibble
