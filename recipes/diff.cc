// nibble diff: what differs between two GGUF files: metadata, tensors, types, and how far their
// weights are apart.
#include <fnmatch.h>

#include <algorithm>
#include <cstdio>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/progress.h"
#include "io/gguf.h"
#include "quant/format/registry.h"
#include "quant/format/statistics.h"
#include "recipes/arguments.h"
#include "recipes/gguf_text.h"
#include "recipes/recipe.h"

namespace nibble {
namespace {

constexpr const char* kIntroduction =
    "What differs between two GGUF files: metadata, tensors, types, and how far the weights of B\n"
    "are from those of A, whatever types they have.\n";

constexpr const char* kExamples =
    "\nRelative error is the root mean square of B - A by that of A; SQNR is the same in decibels\n"
    "(6 dB more: half the error). A worst row has the highest relative error of its own.\n"
    "= codes: the share of weights with equal codes, where both files have the same type.\n"
    "Of large tensors a sample of rows is compared, the same ones every time, so that files of\n"
    "any size are answered at once; --full compares all, as does --tensor for those it names.\n"
    "The exit status is 0 whether or not there are differences.\n"
    "\nexamples:\n"
    "  nibble diff f16.gguf q4_k_m.gguf                     what quantizing cost each tensor\n"
    "  nibble diff f16.gguf q4_k_m.gguf --full --rows 3     every weight, 3 worst rows of each\n"
    "  nibble diff a.gguf b.gguf --tensor 'blk.*.ffn_down.weight'\n"
    "  nibble diff a.gguf b.gguf --tensor attn_v            the names with attn_v in them\n"
    "  nibble diff x.gguf repaired.gguf --full              scales moved, codes did not\n"
    "  nibble diff a.gguf b.gguf --json | jq .overall.sqnr_db\n";

/// Weights of a tensor that are compared where not all are: 7 B weights in 300 tensors are then
/// answered in about a second.
constexpr int64_t kSampleWeights = 1 << 17;

struct Request {
  std::string pattern;  // of tensor names; "" for all
  bool full = false;
  int64_t num_rows = 0;  // worst rows to show
  bool samples() const { return !full && pattern.empty(); }
};

struct WorstRow {
  int64_t row;
  Difference difference;
};

/// A tensor that both files have.
struct TensorDiff {
  const GgufTensor* a;
  const GgufTensor* b;
  std::string obstacle;  // why weights could not be compared
  Difference total;      // of the rows that were compared
  std::vector<WorstRow> worst;
  std::optional<int64_t> equal_codes;  // weights among them, where both have codes of one type
};

struct FileDiff {
  std::vector<std::string> only_in_a, only_in_b;
  std::vector<TensorDiff> tensors;       // in A's order
  Difference overall;                    // sampled tensors count as much as whole ones
  const TensorDiff* farthest = nullptr;  // with the largest difference
};

/// A whole name, else a part of names, or a pattern with * and ?.
bool matches(const std::string& name, const std::string& pattern) {
  if (pattern.find_first_of("*?[") != std::string::npos)
    return fnmatch(pattern.c_str(), name.c_str(), 0) == 0;
  return name.find(pattern) != std::string::npos;
}

/// The tensors of a file that were asked for, in its order.
std::vector<const GgufTensor*> chosen_tensors(const GgufFile& file, const GgufFile& other,
                                              const std::string& pattern) {
  const bool whole_name = file.find_tensor(pattern) || other.find_tensor(pattern);
  std::vector<const GgufTensor*> chosen;
  for (const GgufTensor& tensor : file.tensors()) {
    if (whole_name ? tensor.name == pattern : matches(tensor.name, pattern))
      chosen.push_back(&tensor);
  }
  return chosen;
}

std::string obstacle_between(const GgufTensor& a, const GgufTensor& b) {
  if (a.shape != b.shape) return concat("shapes differ: ", shape_text(a), ", ", shape_text(b));
  for (const GgufTensor* tensor : {&a, &b}) {
    if (!find_decoder(tensor->type))
      return concat("nibble does not decode ", type_name(tensor->type));
  }
  return "";
}

/// The rows of highest relative error, the worst first; at least one, to be named.
std::vector<WorstRow> worst_rows(const std::vector<int64_t>& rows,
                                 const std::vector<Difference>& differences, int64_t count) {
  std::vector<WorstRow> worst;
  for (size_t i = 0; i < rows.size(); ++i) {
    if (!differences[i].none()) worst.push_back({rows[i], differences[i]});
  }
  const auto kept = std::min(worst.size(), static_cast<size_t>(std::max<int64_t>(1, count)));
  std::partial_sort(worst.begin(), worst.begin() + static_cast<int64_t>(kept), worst.end(),
                    [](const WorstRow& x, const WorstRow& y) {
                      const double error = x.difference.relative_error();
                      const double other = y.difference.relative_error();
                      return error != other ? error > other : x.row < y.row;
                    });
  worst.resize(kept);
  return worst;
}

/// Has the system read rows of a tensor, all at the same time.
void read_ahead(const GgufFile& file, const GgufTensor& tensor, const std::vector<int64_t>& rows) {
  const int64_t stride = row_bytes(tensor.type, tensor.row_length());
  for (const int64_t row : rows) file.read_ahead(tensor, row * stride, stride);
}

TensorDiff compare_tensors(const GgufFile& file_a, const GgufTensor& a, const GgufFile& file_b,
                           const GgufTensor& b, const Request& request) {
  TensorDiff diff{&a, &b, obstacle_between(a, b), {}, {}, {}};
  if (!diff.obstacle.empty()) return diff;
  const int64_t most = request.samples() ? kSampleWeights : a.num_weights();
  const std::vector<int64_t> rows = sample_rows(a.num_rows(), a.row_length(), most);
  if (request.samples()) {
    read_ahead(file_a, a, rows);
    read_ahead(file_b, b, rows);
  }
  const std::vector<Difference> differences = compare_rows(a, b, rows);
  for (const Difference& difference : differences) diff.total.add(difference);
  diff.worst = worst_rows(rows, differences, request.num_rows);
  diff.equal_codes = count_equal_codes(a, b, rows);
  return diff;
}

/// Adds a tensor's sums to the file's, as if all its rows had been compared.
void add_to_overall(const TensorDiff& diff, Difference& overall) {
  const double factor =
      static_cast<double>(diff.a->num_weights()) / static_cast<double>(diff.total.num_weights);
  Difference scaled = diff.total;
  scaled.signal *= factor;
  scaled.noise *= factor;
  overall.add(scaled);
}

FileDiff compare_files(const GgufFile& a, const GgufFile& b, const Request& request) {
  const auto in_a = chosen_tensors(a, b, request.pattern);
  const auto in_b = chosen_tensors(b, a, request.pattern);
  if (in_a.empty() && in_b.empty() && !request.pattern.empty())
    fail_usage("--tensor ", request.pattern, ": no tensor of that name",
               did_you_mean(request.pattern, tensor_names(a)));
  FileDiff diff;
  for (const GgufTensor* tensor : in_b) {
    if (!a.find_tensor(tensor->name)) diff.only_in_b.push_back(tensor->name);
  }
  if (request.samples()) {
    a.expect_jumps();
    b.expect_jumps();
  }
  Progress progress("diff", static_cast<int64_t>(in_a.size()), "tensors");
  for (size_t i = 0; i < in_a.size(); ++i) {
    const GgufTensor* other = b.find_tensor(in_a[i]->name);
    if (!other) {
      diff.only_in_a.push_back(in_a[i]->name);
      continue;
    }
    diff.tensors.push_back(compare_tensors(a, *in_a[i], b, *other, request));
    a.release(*in_a[i]);
    b.release(*other);
    progress.update(static_cast<int64_t>(i + 1), in_a[i]->name);
  }
  for (const TensorDiff& tensor : diff.tensors) {
    if (!tensor.obstacle.empty()) continue;
    add_to_overall(tensor, diff.overall);
    if (!diff.farthest || tensor.total.max_abs > diff.farthest->total.max_abs)
      diff.farthest = &tensor;
  }
  return diff;
}

/// A key whose values differ; nullptr where a file lacks it.
struct KeyDiff {
  std::string key;
  const GgufValue* a;
  const GgufValue* b;
};

std::vector<KeyDiff> compare_metadata(const GgufFile& a, const GgufFile& b) {
  std::vector<KeyDiff> differences;
  for (const auto& [key, value] : a.metadata().pairs()) {
    const GgufValue* other = b.metadata().find(key);
    if (!other || !(*other == value)) differences.push_back({key, &value, other});
  }
  for (const auto& [key, value] : b.metadata().pairs()) {
    if (!a.metadata().contains(key)) differences.push_back({key, nullptr, &value});
  }
  return differences;
}

Json json_of(const Difference& difference) {
  return {{"relative_error", difference.relative_error()},
          {"sqnr_db", difference.sqnr_db()},
          {"max_abs", difference.max_abs},
          {"not_finite", difference.num_not_finite}};
}

Json json_of(const TensorDiff& diff, int64_t num_rows) {
  Json json = {{"name", diff.a->name},
               {"type_a", type_name(diff.a->type)},
               {"type_b", type_name(diff.b->type)},
               {"shape", diff.a->shape},
               {"weights", diff.a->num_weights()}};
  if (!diff.obstacle.empty()) {
    json["obstacle"] = diff.obstacle;
    return json;
  }
  json["compared"] = diff.total.num_weights;
  json.update(json_of(diff.total));
  if (diff.equal_codes) json["equal_codes"] = share(*diff.equal_codes, diff.total.num_weights);
  if (num_rows == 0) return json;
  json["worst_rows"] = Json::array();
  for (const WorstRow& row : diff.worst) {
    Json line = Json::object();
    line["row"] = row.row;
    line.update(json_of(row.difference));
    json["worst_rows"].push_back(std::move(line));
  }
  return json;
}

Json json_of(const std::vector<KeyDiff>& differences) {
  Json json = Json::object();
  for (const auto& [key, a, b] : differences) {
    json[key] = Json::object();
    if (a) json[key]["a"] = json_of(*a);
    if (b) json[key]["b"] = json_of(*b);
  }
  return json;
}

void print_json(const GgufFile& a, const GgufFile& b, const FileDiff& diff,
                const Request& request) {
  Json json = {{"a", a.path()}, {"b", b.path()}, {"sampled", request.samples()}};
  if (request.pattern.empty()) json["metadata"] = json_of(compare_metadata(a, b));
  json["only_in_a"] = diff.only_in_a;
  json["only_in_b"] = diff.only_in_b;
  json["tensors"] = Json::array();
  for (const TensorDiff& tensor : diff.tensors)
    json["tensors"].push_back(json_of(tensor, request.num_rows));
  json["overall"] = json_of(diff.overall);
  json["overall"]["compared"] = diff.overall.num_weights;
  std::printf("%s\n", text_of(json, 2).c_str());
}

void print_metadata(const std::vector<KeyDiff>& differences) {
  std::printf("\nmetadata: %s\n", differences.empty() ? "no difference" : "");
  for (const auto& [key, a, b] : differences) {
    if (!b)
      std::printf("  %-42s only in A: %s\n", key.c_str(), short_text(*a).c_str());
    else if (!a)
      std::printf("  %-42s only in B: %s\n", key.c_str(), short_text(*b).c_str());
    else
      std::printf("  %-42s %s\n  %-42s -> %s\n", key.c_str(), short_text(*a).c_str(), "",
                  short_text(*b).c_str());
  }
}

std::string number(const char* format, double value) {
  char text[32];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

/// "relative error 0.0712, SQNR 22.95 dB".
std::string error_text(const Difference& difference) {
  if (difference.num_weights == 0) return "no weights compared";
  std::string text = difference.noise == 0.0
                         ? "no difference"
                         : concat("relative error ", number("%.4g", difference.relative_error()),
                                  ", SQNR ", number("%.2f", difference.sqnr_db()), " dB");
  if (difference.num_not_finite)
    text += concat("; ", difference.num_not_finite, " NaN or infinite");
  return text;
}

/// "all", or the share of weights whose codes are equal.
std::string codes_text(const TensorDiff& diff) {
  if (!diff.equal_codes) return "-";
  if (*diff.equal_codes == diff.total.num_weights) return "all";
  return number("%.2f %%", 100.0 * share(*diff.equal_codes, diff.total.num_weights));
}

void print_tensor(const TensorDiff& diff, int64_t num_rows) {
  const std::string types = diff.a->type == diff.b->type
                                ? std::string(type_name(diff.a->type))
                                : concat(type_name(diff.a->type), " -> ", type_name(diff.b->type));
  std::printf("  %-36s %-18s ", diff.a->name.c_str(), types.c_str());
  if (!diff.obstacle.empty() || diff.total.none()) {
    std::printf("%s\n", diff.obstacle.empty() ? "equal" : diff.obstacle.c_str());
    return;
  }
  const WorstRow& worst = diff.worst.front();
  std::printf("%10.4g %8.2f %10.4g %8s  %lld (%.4g)", diff.total.relative_error(),
              diff.total.sqnr_db(), diff.total.max_abs, codes_text(diff).c_str(),
              static_cast<long long>(worst.row), worst.difference.relative_error());
  if (diff.total.num_not_finite)
    std::printf("  %lld NaN or infinite", static_cast<long long>(diff.total.num_not_finite));
  std::printf("\n");
  for (size_t i = 0; num_rows > 0 && i < diff.worst.size(); ++i) {
    const auto& [row, difference] = diff.worst[i];
    std::printf("  %36s %-18s %10.4g %8.2f %10.4g\n", "", concat("row ", row).c_str(),
                difference.relative_error(), difference.sqnr_db(), difference.max_abs);
  }
}

void print_summary(const FileDiff& diff, const Request& request) {
  int64_t equal = 0, different = 0, weights = 0, with_codes = 0, same_codes = 0;
  for (const TensorDiff& tensor : diff.tensors) {
    with_codes += tensor.equal_codes.has_value();
    same_codes += tensor.equal_codes == tensor.total.num_weights;
    const bool compared = tensor.obstacle.empty();
    equal += compared && tensor.total.none();
    different += !compared || !tensor.total.none();
    weights += compared ? tensor.a->num_weights() : 0;
  }
  std::printf("\noverall: %s", error_text(diff.overall).c_str());
  if (diff.farthest && diff.overall.max_abs > 0.0)
    std::printf(", largest difference %.4g (%s)", diff.overall.max_abs,
                diff.farthest->a->name.c_str());
  std::printf("\n%lld tensors equal, %lld different, %zu only in A, %zu only in B\n",
              static_cast<long long>(equal), static_cast<long long>(different),
              diff.only_in_a.size(), diff.only_in_b.size());
  if (with_codes > 0)
    std::printf("all codes equal in %lld of %lld tensors of one quantized type\n",
                static_cast<long long>(same_codes), static_cast<long long>(with_codes));
  if (request.samples() && diff.overall.num_weights < weights)
    std::printf(
        "%.2g %% of the weights were compared, spread over all tensors; --full compares "
        "every one\n",
        100.0 * share(diff.overall.num_weights, weights));
}

void print_file(const char* label, const GgufFile& file) {
  int64_t weights = 0, bytes = 0;
  for (const GgufTensor& tensor : file.tensors()) {
    weights += tensor.num_weights();
    bytes += static_cast<int64_t>(tensor.data.size());
  }
  std::printf("%s  %s: %s, %zu tensors, %lld weights, %.3f bits per weight\n", label,
              file.path().c_str(), format_bytes(file.file_bytes()).c_str(), file.tensors().size(),
              static_cast<long long>(weights), bits_per_weight(bytes, weights));
}

void print_diff(const GgufFile& a, const GgufFile& b, const FileDiff& diff,
                const Request& request) {
  print_file("A", a);
  print_file("B", b);
  if (request.pattern.empty()) print_metadata(compare_metadata(a, b));
  std::printf("\n  %-36s %-18s %10s %8s %10s %8s  %s\n", "tensor", "type", "rel. error", "SQNR dB",
              "max. diff.", "= codes", "worst row");
  for (const TensorDiff& tensor : diff.tensors) print_tensor(tensor, request.num_rows);
  for (const std::string& name : diff.only_in_a) std::printf("  %-36s only in A\n", name.c_str());
  for (const std::string& name : diff.only_in_b) std::printf("  %-36s only in B\n", name.c_str());
  print_summary(diff, request);
}

cxxopts::Options make_options() {
  cxxopts::Options options("nibble diff", kIntroduction);
  options.custom_help("[OPTIONS]").positional_help("A.gguf B.gguf");
  cxxopts::OptionAdder add = options.add_options();
  add("tensor", "only the tensors of this name, else those with it in their name; * and ? match",
      cxxopts::value<std::string>(), "NAME");
  add("full", "compare every weight, not a sample of each large tensor");
  add("rows", "show the N worst rows of each tensor", cxxopts::value<int64_t>()->default_value("0"),
      "N");
  add("json", "one JSON object on stdout");
  add("q,quiet", "no progress bar");
  cxxopts::OptionAdder add_positional = options.add_options("Positional");
  add_positional("a", "", cxxopts::value<std::string>());
  add_positional("b", "", cxxopts::value<std::string>());
  options.parse_positional({"a", "b"});
  return options;
}

}  // namespace

int run_diff(int argc, char** argv) {
  cxxopts::Options options = make_options();
  const auto arguments = parse_arguments(options, argc, argv, kExamples);
  if (!arguments) return 0;
  const std::string path_a = model_argument(*arguments, "a", "A.gguf");
  const std::string path_b = model_argument(*arguments, "b", "B.gguf");
  const Request request = {text_or_empty(*arguments, "tensor"), arguments->count("full") > 0,
                           (*arguments)["rows"].as<int64_t>()};
  if (request.num_rows < 0) fail_usage("--rows: wants 0 or more, found ", request.num_rows);
  Progress::set_quiet(arguments->count("quiet") > 0);

  const GgufFile a = GgufFile::open(path_a), b = GgufFile::open(path_b);
  const FileDiff diff = compare_files(a, b, request);
  if (arguments->count("json"))
    print_json(a, b, diff, request);
  else
    print_diff(a, b, diff, request);
  return 0;
}

}  // namespace nibble
