// Documents from text files: a text file is one, a row of a .jsonl file is one.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace nibble {

/// The documents of all files that the patterns (paths or globs) name, in order, each file once.
/// Rows of .jsonl files are objects with a string under `text_field`; empty documents are left out.
/// Stops after `max_bytes` of text (0: none left out), at a character's end. Throws with path, line
/// or byte for: a pattern without a file, a file with a zero byte (which is no text), a row of
/// another form.
std::vector<std::string> read_documents(const std::vector<std::string>& patterns,
                                        const std::string& text_field, int64_t max_bytes);

}  // namespace nibble
