// What nibble verify does with and without a run to compare with.
#pragma once

#include <optional>
#include <string>

#include "export/verify.h"

namespace nibble {

struct VerifyArguments {
  std::string path;
  std::optional<std::string> against;  // a run folder
  std::string checkpoint;              // best or last; "" where not given
  std::string chat;                    // a file of conversations, or ""
  bool all, json;
};

/// Nothing when help was asked for. Throws Error (usage).
std::optional<VerifyArguments> verify_arguments(int argc, char** argv);

/// Verifies, prints, and returns the exit status. against: nullptr where no run was given.
int verify_and_print(const VerifyArguments& arguments, const TrainedWeights* against);

/// nibble verify --chat: takes every conversation through the file's chat template and tokenizer,
/// prints what training would see of them and what is wrong, and returns the exit status.
int verify_chat(const VerifyArguments& arguments);

}  // namespace nibble
