#include "training/http_client.h"

#include "base/error.h"

#ifdef NIBBLE_CURL
#include <curl/curl.h>

#include <chrono>
#include <cstdlib>
#include <memory>
#include <string_view>
#include <thread>

#include "io/json.h"
#endif

namespace nibble {

#ifndef NIBBLE_CURL

nlohmann::json post_json(const std::string& url, const nlohmann::ordered_json&,
                         const std::atomic<bool>&) {
  fail(url, ": this nibble was built without libcurl: install libcurl4-openssl-dev, build again");
}

#else

namespace {

constexpr size_t kMostAnswerBytes = size_t{64} << 20;
constexpr int kMostNesting = 32;
constexpr int kTries = 5;
constexpr long kConnectSeconds = 20, kAnswerSeconds = 1800;

size_t take_bytes(char* data, size_t size, size_t count, void* to) {
  auto& answer = *static_cast<std::string*>(to);
  if (answer.size() + size * count > kMostAnswerBytes) return 0;  // an error to libcurl
  answer.append(data, size * count);
  return size * count;
}

int is_stopped(void* stop, curl_off_t, curl_off_t, curl_off_t, curl_off_t) {
  return static_cast<const std::atomic<bool>*>(stop)->load() ? 1 : 0;
}

struct Answer {
  CURLcode code = CURLE_OK;
  long status = 0;
  std::string text, problem;

  /// Whether the same question may get another answer in a while.
  bool may_change() const {
    return code == CURLE_COULDNT_CONNECT || code == CURLE_RECV_ERROR || code == CURLE_GOT_NOTHING ||
           (code == CURLE_OK && (status == 429 || status >= 500));
  }
};

Answer ask(const std::string& url, const std::string& body, const std::atomic<bool>& stop) {
  static const CURLcode started = curl_global_init(CURL_GLOBAL_DEFAULT);
  const std::unique_ptr<CURL, void (*)(CURL*)> curl(curl_easy_init(), curl_easy_cleanup);
  check(started == CURLE_OK && curl, "libcurl does not start");
  curl_slist* lines = curl_slist_append(nullptr, "Content-Type: application/json");
  if (const char* key = std::getenv("OPENAI_API_KEY"); key && *key)
    lines = curl_slist_append(lines, concat("Authorization: Bearer ", key).c_str());
  const std::unique_ptr<curl_slist, void (*)(curl_slist*)> headers(lines, curl_slist_free_all);
  Answer answer;
  char problem[CURL_ERROR_SIZE] = "";
  const auto set = [&](CURLoption option, auto value) {
    check(curl_easy_setopt(curl.get(), option, value) == CURLE_OK, url, ": libcurl refuses option ",
          static_cast<int>(option));
  };
  set(CURLOPT_URL, url.c_str());
  set(CURLOPT_PROTOCOLS_STR, "http,https");
  set(CURLOPT_HTTPHEADER, headers.get());
  set(CURLOPT_POSTFIELDS, body.c_str());
  set(CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(body.size()));
  set(CURLOPT_WRITEFUNCTION, take_bytes);
  set(CURLOPT_WRITEDATA, &answer.text);
  set(CURLOPT_ERRORBUFFER, problem);
  set(CURLOPT_NOSIGNAL, 1L);
  set(CURLOPT_NOPROGRESS, 0L);
  set(CURLOPT_XFERINFOFUNCTION, is_stopped);
  set(CURLOPT_XFERINFODATA, const_cast<std::atomic<bool>*>(&stop));
  set(CURLOPT_CONNECTTIMEOUT, kConnectSeconds);
  set(CURLOPT_TIMEOUT, kAnswerSeconds);
  answer.code = curl_easy_perform(curl.get());
  answer.problem = *problem ? problem : curl_easy_strerror(answer.code);
  curl_easy_getinfo(curl.get(), CURLINFO_RESPONSE_CODE, &answer.status);
  return answer;
}

/// The server's words, or the beginning of them.
std::string complaint_of(const std::string& text) {
  const auto json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (json.is_object() && json.contains("error")) {
    const auto& error = json["error"];
    if (error.is_string()) return error.get<std::string>();
    if (error.is_object() && error.contains("message") && error["message"].is_string())
      return error["message"].get<std::string>();
  }
  return text.substr(0, 300);
}

}  // namespace

nlohmann::json post_json(const std::string& url, const nlohmann::ordered_json& body,
                         const std::atomic<bool>& stop) {
  const std::string text =
      body.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  Answer answer = ask(url, text, stop);
  for (int again = 1; again < kTries && answer.may_change() && !stop; ++again) {
    std::this_thread::sleep_for(std::chrono::seconds(again));
    answer = ask(url, text, stop);
  }
  check(answer.code == CURLE_OK, url, ": ", answer.problem);
  check(answer.status == 200, url, ": answers with status ", answer.status, ": ",
        complaint_of(answer.text));
  return with_frame(url, [&] { return parse_json_object(answer.text, "answer", kMostNesting); });
}

#endif

}  // namespace nibble
