// Text that the model itself writes, to train on: where data.files names "self", the source samples
// it before training begins and it lies in the run folder as self.jsonl, a file like any other.
// Texts begin as self.prompts says, in turn, or with nothing but the token that begins a text; a
// text ends where the model ends it, or at data.sequence_length. Of chat data prompts are
// conversations, and a text is the answer to one. Where self.endpoint names a server that has the
// source, it is asked to write.
#pragma once

#include <cstdint>
#include <string>

#include "io/gguf.h"
#include "model/model.h"
#include "training/self_endpoint.h"
#include "training/trainer.h"

namespace nibble {

/// The entry of data.files that stands for it.
inline constexpr const char* kSelf = "self";

/// The file that takes its place.
inline std::string self_text_path(const std::string& run_dir) { return run_dir + "/self.jsonl"; }

struct SelfTextOptions {
  int64_t tokens = 0;  // about so many, prompts included
  double temperature = 1.0;
  std::string prompts;  // path: lines of a text file, or rows of a .jsonl file; "": none
  EndpointOptions endpoint;
  int64_t at_once = 16;  // texts that are written together

  bool operator==(const SelfTextOptions&) const = default;
};

/// Writes rows of options.data's format, aside and renamed. The random numbers of a text follow
/// from options.seed and its number, and which texts are kept does not depend on which of them
/// ended first. Throws for prompts that are none, naming file and line, and for a model that
/// answers without an end.
void write_self_text(Model& model, const GgufMetadata& metadata, const TrainOptions& options,
                     const SelfTextOptions& self, const std::string& path);
/// The same of the model that a server has, whose metadata these are.
void write_self_text(const GgufMetadata& metadata, const TrainOptions& options,
                     const SelfTextOptions& self, const std::string& path);

/// Has the source write the text in the run folder where data.files names it, and puts the file's
/// path in the entry's place. keep: a file that is there stays.
void make_self_text(TrainOptions& options, const SelfTextOptions& self, const GgufFile& source,
                    const std::string& run_dir, bool keep);

}  // namespace nibble
