// Requests to a server that answers JSON, with libcurl.
#pragma once

#include <atomic>
#include <nlohmann/json.hpp>
#include <string>

namespace nibble {

/// What the server answers to `body`, sent to `url` (http or https). A key in the environment
/// variable OPENAI_API_KEY goes with it. A server that is busy or still loading is asked again a
/// few times. Throws, naming the URL, for one that cannot be reached, answers with an error (its
/// words with it) or with anything but a JSON object, and soon after `stop` is set.
nlohmann::json post_json(const std::string& url, const nlohmann::ordered_json& body,
                         const std::atomic<bool>& stop);

}  // namespace nibble
