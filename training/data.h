// Training text: files -> documents -> tokens -> sequences of one length, and a held-out part that
// training never sees.
//
// A text file is one document; a row of a .jsonl file is one document; in chat data, a conversation
// as the model's template writes it is one, of which the assistant's answers count in the loss.
// Documents are shuffled by the seed, tokenized with the BOS and EOS that the model adds, laid end
// to end and cut into sequences of L tokens; what is left at the end and shorter than L is dropped.
// Every position carries its document's number, so that attention can stay inside documents.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/gguf.h"
#include "model/chat/chat_template.h"
#include "model/model.h"
#include "model/tokenizer.h"
#include "quant/fake/torch.h"
#include "training/trainer.h"

namespace nibble {

/// Sequences that follow each other and the share of a training's sequences that comes from them.
struct SequenceGroup {
  int64_t first = 0, count = 0;
  double weight = 1;
};

/// N sequences of L tokens.
struct PackedData {
  torch::Tensor tokens;    // [N, L] int64
  torch::Tensor document;  // [N, L] int64; constant over the tokens of one document
  torch::Tensor trained;   // [N, L] bool: tokens that count in the loss; undefined: all do
  std::vector<SequenceGroup> groups = {};  // all sequences; empty: one group

  int64_t num_sequences() const { return tokens.size(0); }
  int64_t sequence_length() const { return tokens.size(1); }
  /// These sequences, as tensors of their own: [rows.size(), L].
  Batch at(const std::vector<int64_t>& rows) const;
};

/// [B * T] int64: the token that follows each position, -1 at the last of a document or sequence
/// and where that token does not count in the loss.
torch::Tensor next_token_targets(const Batch& batch);

struct TextData {
  PackedData train;
  PackedData held_out;  // [0, L] when options.held_out is 0
  int64_t num_documents = 0;
  int64_t num_tokens = 0;    // of all documents
  int64_t num_bytes = 0;     // of all documents; of chat data, with what the template adds
  uint64_t fingerprint = 0;  // of both parts, token by token: equal for equal data on any machine

  /// Reads, tokenizes and packs. The held-out part is the share options.held_out of the tokens, at
  /// least one sequence: whole documents where they are small beside it, else the tail of one.
  /// Throws for a pattern that matches no file, a file that is not text, a JSON row without the
  /// text field (with its line), and for text too short for one training sequence and the held-out
  /// part. chat: wanted, and used, where options.format is "chat".
  static TextData load(const DataOptions& options, const Tokenizer& tokenizer, uint64_t seed,
                       const ChatTemplate* chat = nullptr);
  /// With the tokenizer and, where it is wanted, the chat template of a model's file.
  static TextData load(const DataOptions& options, const GgufMetadata& metadata, uint64_t seed);
};

/// The order in which documents are laid end to end; the held-out part, at most twice the share
/// that the options name, is its end.
std::vector<int64_t> document_order(int64_t count, uint64_t seed);

/// The sequences that step `step` (from 0) trains on, `count` of `num_sequences`: every epoch is a
/// new permutation of all of them, and the last sequences of one epoch share a step with the first
/// of the next. A pure function of its arguments, so a run resumes at any step, on any machine.
std::vector<int64_t> step_sequences(uint64_t seed, int64_t step, int64_t count,
                                    int64_t num_sequences);
/// The same of several groups, each with epochs of its own: of any number of sequences in a row the
/// groups have their shares, to within one sequence for each group.
std::vector<int64_t> step_sequences(uint64_t seed, int64_t step, int64_t count,
                                    const PackedData& data);

/// Of a training's first `draws` sequences each one once, ascending.
std::vector<int64_t> sequences_of_draws(uint64_t seed, int64_t draws, const PackedData& data);

/// At most so many of the held-out sequences, spread over all of them, since neighbours are often
/// one document; of a mixture the shares that are trained on.
std::vector<int64_t> held_out_sequences(const PackedData& held_out, uint64_t seed, int64_t most);

/// Rows in their order, so many at a time; the last may be fewer.
std::vector<std::vector<int64_t>> in_pieces(const std::vector<int64_t>& rows, int64_t size);

}  // namespace nibble
