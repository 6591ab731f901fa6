// Models that other programs have downloaded already: the caches of Hugging Face's tools, which
// llama.cpp shares since 2026, and the one that llama.cpp had before. Nothing is downloaded here.
#pragma once

#include <string>

namespace nibble {

/// The path of a model that is given as a path, which stays as it is where such a file or folder
/// exists, or as a repository, "OWNER/NAME" or "OWNER/NAME:TAG" as llama.cpp's -hf takes it: the
/// folder of its newest snapshot, or its GGUF file of whose name TAG is a part (in any case). Other
/// texts stay too, for whoever opens them to complain. Throws Error (usage) for a repository that
/// no cache has, with the command that downloads it, and where several files could be meant, with
/// their names.
///
/// Sources: huggingface_hub's cache layout, models--OWNER--NAME/{refs/main,snapshots/COMMIT/...}
/// below $HF_HUB_CACHE, $HF_HOME/hub or ~/.cache/huggingface/hub; llama.cpp common/arg.cpp of 2025,
/// OWNER_NAME_FILE.gguf in $LLAMA_CACHE or ~/.cache/llama.cpp. $XDG_CACHE_HOME takes the place of
/// ~/.cache.
std::string find_model(const std::string& given);

}  // namespace nibble
