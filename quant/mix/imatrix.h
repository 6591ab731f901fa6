// Importance matrices: for each matrix of a model, the sums of the squared activations that entered
// its columns, and how many there were. llama.cpp's GGUF is read and written: general.type
// "imatrix", keys imatrix.datasets, imatrix.chunk_count and imatrix.chunk_size, and for each matrix
// float32 tensors NAME.in_sum2 [columns, experts] and NAME.counts [1, experts]. Its older .dat is
// read: i32 number of entries; per entry a string, i32 calls, i32 number of values and float32
// values, the mean squares times calls; then, where it goes on, i32 number of chunks and the text's
// name; a string is its i32 length and its bytes. Source: llama.cpp tools/imatrix/imatrix.cpp,
// common/imatrix-loader.cpp.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace nibble {

/// What entered one matrix, or each matrix of a stack of experts.
struct ImatrixEntry {
  std::vector<float> sums;      // of squares: a row of columns for each count
  std::vector<int64_t> counts;  // activations that were summed up

  bool operator==(const ImatrixEntry&) const = default;
};

struct Imatrix {
  std::string path;                   // of the file that it was read from, as given
  std::vector<std::string> datasets;  // names of the texts
  int64_t chunk_count = 0;
  int64_t chunk_size = 0;                       // tokens; 0 in a .dat
  std::map<std::string, ImatrixEntry> entries;  // by the matrix's name, "blk.0.attn_q.weight"

  /// Reads either format. Throws Error with path and byte, key or tensor: a file that is neither, a
  /// missing key, sums without counts, numbers that are not finite or negative.
  static Imatrix open(const std::string& path);
  /// Writes the GGUF, whole or not at all.
  void write(const std::string& path) const;
};

/// The mean squares, which are the importance of the columns: a row for each expert. An expert that
/// no activation reached has ones: all its columns count alike.
std::vector<float> mean_squares(const ImatrixEntry& entry);

}  // namespace nibble
