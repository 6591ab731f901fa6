#include "model/hf/conversion_plan.h"

#include <algorithm>
#include <map>
#include <set>
#include <string_view>
#include <tuple>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "model/hf/source_type.h"

namespace nibble {
namespace {

using Tensor = HfCheckpoint::Tensor;

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (const int64_t size : shape) text += concat(text.size() > 1 ? ", " : "", size);
  return text + ']';
}

/// What the converter of llama.cpp leaves out too: constants that follow from the configuration.
bool is_left_out(const std::string& name) {
  return name.ends_with(".rotary_emb.inv_freq") || name.ends_with(".attention.masked_bias") ||
         name.ends_with(".attention.bias");
}

/// Of the layers that predict further tokens, of families that have them.
bool is_of_mtp(const std::string& name, const HfConfig& config) {
  return config.architecture->delta_bit != 0 && name.starts_with("mtp.");
}

/// Jobs as they come to be.
class Planner {
 public:
  Planner(const HfSource& source, const HfConfig& config)
      : source_(source), config_(config), wanted_(config) {
    for (const WantedTensors::Target& target : wanted_.targets()) {
      HfJob& job = jobs_.emplace_back(HfJob{target, GgmlType::kF32, {}, 0});
      job.parts.resize(static_cast<size_t>(target.num_parts()));
    }
  }

  /// False for a tensor that the model does not have.
  bool add(const Tensor& tensor) {
    const std::string matrix = source_.packed_matrix(tensor.entry->name);
    const std::string name = text_tensor_name(matrix.empty() ? tensor.entry->name : matrix);
    if (name.empty()) has_other_parts_ = true;
    if (name.empty() || is_left_out(name)) return true;
    if (config_.mtp_layers == 0 && is_of_mtp(name, config_)) {
      ++num_mtp_;
      return true;
    }
    const auto places = wanted_.find(name);
    if (places.empty()) return source_.is_made_up_bias(tensor);
    for (const WantedTensors::Place& place : places)
      if (matrix.empty())
        add_plain(tensor, name, place);
      else
        add_packed(tensor, matrix, name, place);
    return true;
  }

  void check_complete() const {
    for (const HfJob& job : jobs_)
      for (size_t i = 0; job.wanted.required && i < job.parts.size(); ++i)
        check(job.parts[i].tensor, source_.folder, ": tensor '",
              job.wanted.part_name(static_cast<int64_t>(i)), "' is missing");
  }

  /// Says what it met and left out.
  void note_left_out() const {
    if (has_other_parts_ && !source_.has_tower)
      note(source_.folder,
           ": the tower that sees is left out: the file holds the language model; nibble convert "
           "--mmproj FILE writes it");
    if (num_mtp_ > 0)
      note(source_.folder, ": ", num_mtp_,
           " tensors mtp.* are left out: the file predicts one token at a time; nibble convert "
           "--mtp carries them through, as mtp: true does in a configuration");
  }

  /// Those that the checkpoint has.
  std::vector<HfJob> take() {
    std::erase_if(jobs_, [](const HfJob& job) { return !job.parts.front().tensor; });
    return std::move(jobs_);
  }

  const std::set<std::string>& replaced() const { return replaced_; }

 private:
  HfJob& job_of(const Tensor& tensor, const WantedTensors::Place& place) {
    HfJob& job = jobs_[place.target];
    job.position = static_cast<size_t>(&tensor - source_.checkpoint.tensors().data());
    return job;
  }

  static HfPart& free_part(HfJob& job, int64_t index) {
    HfPart& part = job.parts[static_cast<size_t>(index)];
    check(!part.tensor, "comes a second time, as '", part.tensor ? part.tensor->entry->name : "",
          "'");
    return part;
  }

  void add_plain(const Tensor& tensor, const std::string& name, const WantedTensors::Place& place) {
    const Tensor* replacement = source_.adapter ? source_.adapter->replacement(name) : nullptr;
    if (replacement) replaced_.insert(name);
    const Tensor& used = replacement ? *replacement : tensor;
    hf_source_type(*used.entry);  // one that can be read
    check(used.entry->shape == place.shape, "has the shape ", shape_text(used.entry->shape),
          ", config.json wants ", shape_text(place.shape));
    HfJob& job = job_of(tensor, place);
    for (int64_t i = 0; i < place.num_matrices; ++i) {
      HfPart& part = free_part(job, place.first_expert + i);
      part.tensor = &used;
      part.first_row = place.first_row + i * place.stride;
    }
  }

  /// Nothing for what does not have the codes: those bring it along.
  void add_packed(const Tensor& tensor, const std::string& matrix, const std::string& name,
                  const WantedTensors::Place& place) {
    const WantedTensors::Target& target = wanted_.targets()[place.target];
    check(target.is_matrix && target.takes_matrix_type(),
          "is a part of a matrix, the model has none there that can be packed");
    const std::string codes = packed_codes_of(*source_.quantization, matrix);
    check(source_.checkpoint.find(codes), "is a part of a packed matrix, and there is no '", codes,
          "'");
    check(!source_.adapter || !source_.adapter->replacement(name),
          "is a part of a packed matrix, the adapter replaces it");
    if (tensor.entry->name != codes) return;
    HfJob& job = job_of(tensor, place);
    for (int64_t i = 0; i < place.num_matrices; ++i) {
      HfPart& part = free_part(job, place.first_expert + i);
      part.tensor = &tensor;
      part.packed =
          PackedMatrix::find(source_.checkpoint, *source_.quantization, matrix,
                             target.source_rows(), target.row_length, place.num_matrices, i);
    }
  }

  const HfSource& source_;
  const HfConfig& config_;
  WantedTensors wanted_;
  std::vector<HfJob> jobs_;
  std::set<std::string> replaced_;
  bool has_other_parts_ = false;
  int64_t num_mtp_ = 0;
};

/// The type that has the codes of all parts as they are.
GgmlType block_type_of(const HfJob& job) {
  std::set<GgmlType> types;
  const HfOrder& order = job.wanted.columns_order;
  for (const HfPart& part : job.parts)
    with_frame(frame_of(*part.tensor), [&] {
      check(part.packed.has_value(), "is not packed, other experts of '", job.wanted.name,
            "' are; --outtype f16 writes weights");
      types.insert(part.packed->block_type());
      const int64_t block = ggml_type_info(*types.begin()).block_size;
      check(!order.is_another() || (order.first % block == 0 && order.size % block == 0),
            "columns of a block come to stand apart, only ", order.size,
            " in a row stay together; --outtype f16 writes weights");
    });
  return types.size() == 1 ? *types.begin() : GgmlType::kQ4_1;
}

void decide_type(HfJob& job, std::optional<GgmlType> matrix_type, GgmlType stored_type) {
  if (!job.wanted.takes_matrix_type()) return;
  job.type = matrix_type.value_or(stored_type);
  const bool packed = std::any_of(job.parts.begin(), job.parts.end(),
                                  [](const HfPart& part) { return part.packed.has_value(); });
  if (packed && !matrix_type) job.type = block_type_of(job);
}

/// Finds what the adapter updates; that all of it was used, and means here what it means in PEFT.
void apply_adapter(const HfAdapter& adapter, const HfConfig& config,
                   const std::set<std::string>& replaced, std::vector<HfJob>& jobs) {
  std::set<std::string> used = replaced;
  for (HfJob& job : jobs)
    for (size_t i = 0; i < job.parts.size(); ++i) {
      HfPart& part = job.parts[i];
      const std::string name = job.wanted.part_name(static_cast<int64_t>(i));
      if (!adapter.updates(name)) continue;
      with_frame(frame_of(*part.tensor), [&] {
        check(job.wanted.is_matrix && !replaced.contains(name), "the adapter cannot update it");
        check(!part.packed || ggml_type_info(job.type).block_size == 1,
              "the adapter changes what it decodes to, so its codes cannot ",
              "stay; --outtype f16 writes weights");
      });
      part.updated = name;
      used.insert(name);
    }
  for (const std::string& name : adapter.tensors())
    with_frame(concat(adapter.path(), ": '", name, "'"), [&] {
      check(used.contains(name), "the model has no such tensor");
      check(!config.tied || !name.ends_with("embed_tokens.weight"),
            "the model's output is tied to it, and PEFT changes one of the two only");
    });
}

/// In the order of llama.cpp's converter: as in the checkpoint, and the stacks of a layer whose
/// experts come one by one where the last of them is, by their names there; gpt-oss's codes come
/// before all.
void sort_jobs(std::vector<HfJob>& jobs) {
  std::map<std::string, size_t> last;
  const auto layer = [](const HfJob& job) {
    return job.wanted.name.substr(0, job.wanted.name.rfind(".ffn_"));
  };
  const auto is_gathered = [](const HfJob& job) {
    return job.parts.front().tensor != job.parts.back().tensor;
  };
  const auto has_codes = [](const HfJob& job) {
    return job.wanted.is_transposed && job.parts.front().packed;
  };
  for (const HfJob& job : jobs)
    if (is_gathered(job)) last[layer(job)] = std::max(last[layer(job)], job.position);
  for (HfJob& job : jobs)
    if (is_gathered(job)) job.position = last[layer(job)];
  std::stable_sort(jobs.begin(), jobs.end(), [&](const HfJob& a, const HfJob& b) {
    const bool a_follows = !has_codes(a), b_follows = !has_codes(b);
    return std::tie(a_follows, a.position, a.wanted.hf_name) <
           std::tie(b_follows, b.position, b.wanted.hf_name);
  });
}

}  // namespace

std::string frame_of(const Tensor& tensor) {
  return concat(tensor.file->path(), ": tensor '", tensor.entry->name, "'");
}

bool HfSource::is_made_up_bias(const Tensor& tensor) const {
  constexpr std::string_view kBias = ".bias";
  const auto& [name, dtype, shape, data] = *tensor.entry;
  if (!quantization || !name.ends_with(kBias)) return false;
  const std::string matrix = name.substr(0, name.size() - kBias.size()) + ".weight";
  return checkpoint.find(packed_codes_of(*quantization, matrix)) &&
         std::all_of(data.begin(), data.end(), [](std::byte byte) { return byte == std::byte{}; });
}

int64_t HfSource::count_mtp_layers(const HfConfig& config) const {
  bool found = false;
  for (const Tensor& tensor : checkpoint.tensors()) {
    const std::string name = text_tensor_name(tensor.entry->name);
    if (!is_of_mtp(name, config)) continue;
    found = true;
    check(!name.starts_with("mtp.layers.") || name.starts_with("mtp.layers.0."), frame_of(tensor),
          ": is of a second layer that predicts further tokens; llama.cpp loads files of one");
  }
  check(found, folder, ": a ", config.family,
        " without tensors mtp.*: there are no layers that predict further tokens");
  return 1;
}

GgmlType HfSource::stored_type() const {
  for (const Tensor& tensor : checkpoint.tensors())
    if (tensor.entry->shape.size() >= 2 && packed_matrix(tensor.entry->name).empty())
      return with_frame(frame_of(tensor), [&] { return hf_source_type(*tensor.entry); });
  check(quantization.has_value(), folder, ": the checkpoint holds no matrix");
  return GgmlType::kF16;
}

std::vector<HfJob> plan_hf_jobs(const HfSource& source, const HfConfig& config,
                                std::optional<GgmlType> matrix_type, GgmlType stored_type) {
  Planner planner(source, config);
  const Tensor* unknown = nullptr;
  for (const Tensor& tensor : source.checkpoint.tensors()) {
    const bool known = with_frame(frame_of(tensor), [&] { return planner.add(tensor); });
    if (!known && !unknown) unknown = &tensor;
  }
  planner.check_complete();
  if (unknown)
    fail(frame_of(*unknown), ": a ", config.family, " of this config.json has no such tensor");
  planner.note_left_out();
  std::vector<HfJob> jobs = planner.take();
  for (HfJob& job : jobs) decide_type(job, matrix_type, stored_type);
  if (source.adapter) apply_adapter(*source.adapter, config, planner.replaced(), jobs);
  sort_jobs(jobs);
  return jobs;
}

}  // namespace nibble
