// Another model than the one that trains, whose predictions a KL loss distils.
#pragma once

#include <memory>
#include <string>

#include "io/gguf.h"
#include "model/model.h"

namespace nibble {

/// Throws Error, with the path, for a file that is no model which nibble runs and for one whose
/// tokens are not the source's: their predictions could not be compared.
void check_teacher(const std::string& path, const GgufFile& source);
/// As check_teacher(), and loads it. on_use: as ModelPart has it.
std::unique_ptr<Model> load_teacher(const std::string& path, const GgufFile& source,
                                    torch::Device device, bool on_use);

}  // namespace nibble
