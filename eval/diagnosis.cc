#include "eval/diagnosis.h"

#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/error.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

Json error_json(double error) { return error < 0 ? Json() : Json(error); }

Json json_of(const TensorDiagnosis& tensor) {
  return {{"tensor", tensor.tensor},
          {"type", tensor.type},
          {"weights", tensor.weights},
          {"codes_moved", share_of(tensor.moved, tensor.weights)},
          {"clamped_start", share_of(tensor.clamped_start, tensor.weights)},
          {"clamped", share_of(tensor.clamped, tensor.weights)},
          {"groups", tensor.groups},
          {"at_floor_start", share_of(tensor.floored_start, tensor.groups)},
          {"at_floor", share_of(tensor.floored, tensor.groups)},
          {"mean_step", tensor.mean_step},
          {"weight_error_start", tensor.weight_error_start},
          {"weight_error", tensor.weight_error},
          {"output_error_start", error_json(tensor.output_error_start)},
          {"output_error", error_json(tensor.output_error)}};
}

std::string percent(int64_t part, int64_t whole) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3g %%", 100 * share_of(part, whole));
  return text;
}

std::string change(double before, double after) {
  char text[64];
  std::snprintf(text, sizeof text, "%.3g -> %.3g", before, after);
  return text;
}

}  // namespace

double share_of(int64_t part, int64_t whole) {
  return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole) : 0.0;
}

TensorDiagnosis Diagnosis::total() const {
  TensorDiagnosis all;
  double steps = 0, outputs_start = 0, outputs = 0;
  int64_t with_outputs = 0;
  for (const TensorDiagnosis& tensor : tensors) {
    all.weights += tensor.weights;
    all.moved += tensor.moved;
    all.clamped_start += tensor.clamped_start;
    all.clamped += tensor.clamped;
    all.groups += tensor.groups;
    all.floored_start += tensor.floored_start;
    all.floored += tensor.floored;
    steps += tensor.mean_step * static_cast<double>(tensor.groups);
    const double share = 1.0 / static_cast<double>(tensors.size());
    all.weight_error_start += tensor.weight_error_start * share;
    all.weight_error += tensor.weight_error * share;
    if (tensor.output_error < 0) continue;
    outputs_start += tensor.output_error_start;
    outputs += tensor.output_error;
    ++with_outputs;
  }
  if (all.groups > 0) all.mean_step = steps / static_cast<double>(all.groups);
  if (with_outputs > 0) {
    all.output_error_start = outputs_start / static_cast<double>(with_outputs);
    all.output_error = outputs / static_cast<double>(with_outputs);
  }
  return all;
}

std::string diagnosis_json(const Diagnosis& diagnosis) {
  Json total = json_of(diagnosis.total());
  total.erase("tensor");
  total.erase("type");
  Json json = {{"step", diagnosis.step},
               {"tokens", diagnosis.tokens},
               {"warnings", diagnosis.warnings},
               {"total", std::move(total)},
               {"tensors", Json::array()}};
  for (const TensorDiagnosis& tensor : diagnosis.tensors)
    json["tensors"].push_back(json_of(tensor));
  return json.dump(2, ' ', false, Json::error_handler_t::replace);
}

std::string diagnosis_line(const Diagnosis& diagnosis) {
  const TensorDiagnosis all = diagnosis.total();
  std::string line = concat(
      "since step 0: ", percent(all.moved, all.weights), " of the codes moved; clamped weights ",
      percent(all.clamped_start, all.weights), " -> ", percent(all.clamped, all.weights),
      "; groups at their scale's floor ", percent(all.floored_start, all.groups), " -> ",
      percent(all.floored, all.groups), "; relative squared error of the weights ",
      change(all.weight_error_start, all.weight_error));
  if (all.output_error >= 0)
    line += concat(", of the matmuls' outputs ", change(all.output_error_start, all.output_error));
  return line;
}

}  // namespace nibble
