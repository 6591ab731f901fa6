#include "training/metrics.h"

#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>
#include <utility>

#include "io/atomic_file.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

StepMetrics from_json(const Json& line) {
  StepMetrics m;
  m.step = line.value("step", m.step);
  m.tokens = line.value("tokens", m.tokens);
  m.seconds = line.value("seconds", m.seconds);
  m.loss = line.value("loss", m.loss);
  m.kl = line.value("kl", m.kl);
  m.ce = line.value("ce", m.ce);
  m.load_balance = line.value("load_balance", m.load_balance);
  m.unreached = line.value("unreached", m.unreached);
  m.learning_rate = line.value("learning_rate", m.learning_rate);
  m.grad_norm = line.value("grad_norm", m.grad_norm);
  m.tokens_per_second = line.value("tokens_per_second", m.tokens_per_second);
  m.held_out_loss = line.value("held_out_loss", m.held_out_loss);
  m.held_out_kl = line.value("held_out_kl", m.held_out_kl);
  m.held_out_ce = line.value("held_out_ce", m.held_out_ce);
  return m;
}

/// The lines that are whole; a killed run can leave half a one.
std::vector<Json> metrics_lines(const std::string& path) {
  std::vector<Json> whole;
  std::istringstream lines(std::filesystem::exists(path) ? read_file(path) : "");
  for (std::string line; std::getline(lines, line);) {
    Json parsed = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (parsed.is_object() && parsed.contains("step")) whole.push_back(std::move(parsed));
  }
  return whole;
}

}  // namespace

std::string metrics_path(const std::string& run_dir) { return run_dir + "/metrics.jsonl"; }

std::string metrics_line(const StepMetrics& m) {
  Json line = {{"step", m.step}, {"tokens", m.tokens}, {"seconds", m.seconds}};
  if (m.step > 0)
    line.update({{"loss", m.loss},
                 {"kl", m.kl},
                 {"ce", m.ce},
                 {"learning_rate", m.learning_rate},
                 {"grad_norm", m.grad_norm},
                 {"tokens_per_second", m.tokens_per_second}});
  if (m.load_balance > 0) line["load_balance"] = m.load_balance;
  if (m.unreached > 0) line["unreached"] = m.unreached;
  if (m.held_out_loss >= 0)
    line.update({{"held_out_loss", m.held_out_loss},
                 {"held_out_kl", m.held_out_kl},
                 {"held_out_ce", m.held_out_ce}});
  return line.dump();
}

std::string metrics_until(const std::string& run_dir, int64_t step) {
  std::string kept;
  for (const Json& line : metrics_lines(metrics_path(run_dir)))
    if (line.value("step", step + 1) <= step) kept += line.dump() + "\n";
  return kept;
}

std::vector<StepMetrics> read_metrics(const std::string& run_dir) {
  std::vector<StepMetrics> metrics;
  for (const Json& line : metrics_lines(metrics_path(run_dir))) metrics.push_back(from_json(line));
  return metrics;
}

}  // namespace nibble
