// docs/formats.md's tables against the code: every number, every format.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <random>
#include <set>
#include <sstream>

#include "base/error.h"
#include "base/float16.h"
#include "io/atomic_file.h"
#include "quant/format/registry.h"

namespace nibble {
namespace {

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream in(text);
  for (std::string part; std::getline(in, part, separator);) {
    const size_t first = part.find_first_not_of(' '), last = part.find_last_not_of(' ');
    parts.push_back(first == std::string::npos ? "" : part.substr(first, last - first + 1));
  }
  return parts;
}

using Row = std::map<std::string, std::string>;  // by column

// The first table under a heading of the page.
std::vector<Row> read_table(const std::string& heading) {
  std::istringstream in(read_file(NIBBLE_SOURCE_DIR "/docs/formats.md"));
  std::vector<std::vector<std::string>> lines;
  std::string line;
  while (std::getline(in, line) && line != heading) {
  }
  while (std::getline(in, line)) {
    if (line.rfind("| ", 0) == 0)
      lines.push_back(split(line.substr(1), '|'));
    else if (!lines.empty())
      break;
  }
  std::vector<Row> rows;
  for (size_t i = 2; i < lines.size(); ++i) {  // after the header and its rule
    Row row;
    for (size_t column = 0; column < lines[0].size(); ++column)
      row[lines[0][column]] = lines[i].at(column);
    rows.push_back(row);
  }
  return rows;
}

struct Field {
  std::string name;
  int64_t bytes;
};

std::vector<Field> fields_of(const Row& row) {
  std::vector<Field> fields;
  for (const std::string& text : split(row.at("fields of a block, in order"), ',')) {
    const std::vector<std::string> words = split(text, ' ');
    fields.push_back({words.at(0), std::stoll(words.at(1))});
  }
  return fields;
}

// Scales as the table names them: the trained quantities that are not the weights. "16 t": t
// sixteen times.
std::vector<std::string> scales_of(const Row& row) {
  const std::vector<std::string> trained = split(row.at("trains"), ',');
  EXPECT_EQ(trained.front(), "weights");
  std::vector<std::string> names;
  for (size_t i = 1; i < trained.size(); ++i) {
    const std::vector<std::string> words = split(trained[i], ' ');
    names.insert(names.end(), words.size() > 1 ? std::stoul(words[0]) : 1, words.back());
  }
  return names;
}

void set_bits(uint8_t& byte, int shift, int count, int value) {
  const int mask = ((1 << count) - 1) << shift;
  byte = static_cast<uint8_t>((byte & ~mask) | (value << shift & mask));
}

/// Sets t_index or u_index in the bytes of `scales` as the text below the table says: of Q4_K and
/// Q5_K, of Q3_K, of Q2_K, of Q6_K; of IQ4_XS in those of `scales_h` or `scales_l`.
void store_integer(uint8_t* scales, const Field& field, bool has_mins, bool is_t, int64_t index,
                   int value) {
  if (field.name == "scales_h") {
    set_bits(scales[index / 4], static_cast<int>(index % 4 * 2), 2, (value + 32) >> 4);
  } else if (field.name == "scales_l") {
    set_bits(scales[index / 2], static_cast<int>(index % 2 * 4), 4, value + 32);
  } else if (field.bytes == 12 && has_mins) {
    uint8_t& own = scales[is_t ? index % 4 : index % 4 + 4];
    set_bits(own, index < 4 ? 0 : 6, index < 4 ? 6 : 2, index < 4 ? value : value >> 4);
    if (index >= 4) set_bits(scales[index + 4], is_t ? 0 : 4, 4, value);
  } else if (field.bytes == 12) {
    set_bits(scales[index % 8], index < 8 ? 0 : 4, 4, value + 32);
    set_bits(scales[8 + index % 4], static_cast<int>(index / 4 * 2), 2, (value + 32) >> 4);
  } else if (has_mins) {
    set_bits(scales[index], is_t ? 0 : 4, 4, value);
  } else {
    scales[index] = static_cast<uint8_t>(static_cast<int8_t>(value));
  }
}

/// A float16 into the field of that name; t or u as an integer among `scales`.
void store(std::vector<std::byte>& block, const std::vector<Field>& fields, const std::string& name,
           float value, int64_t index = 0) {
  const bool has_mins = std::any_of(fields.begin(), fields.end(),
                                    [](const Field& field) { return field.name == "dmin"; });
  int64_t offset = 0;
  for (const Field& field : fields) {
    const uint16_t half = float_to_float16(value);
    if (field.name == name) std::memcpy(block.data() + offset, &half, sizeof half);
    if ((name == "t" || name == "u") && field.name.starts_with("scales"))
      store_integer(reinterpret_cast<uint8_t*>(block.data()) + offset, field, has_mins, name == "t",
                    index, static_cast<int>(value));
    offset += field.bytes;
  }
}

class FormatsDoc : public testing::Test {
 protected:
  const std::vector<Row> rows = read_table("# Block formats");
  const std::vector<Row> decode_only = read_table("## Decoded only");
};

void expect_numbers(const Row& row, const Format* format) {
  SCOPED_TRACE(row.at("format"));
  ASSERT_NE(format, nullptr);
  EXPECT_EQ(row.at("GGUF type"), concat(static_cast<uint32_t>(format->type)));
  EXPECT_EQ(row.at("file_type"), concat(format->ftype));
  EXPECT_EQ(row.at("weights"), concat(format->block_size));
  EXPECT_EQ(row.at("bytes"), concat(format->block_bytes));
  EXPECT_EQ(row.at("bits per weight"), concat(format->bits_per_weight()));
  int64_t bytes = 0;
  for (const Field& field : fields_of(row)) bytes += field.bytes;
  EXPECT_EQ(bytes, format->block_bytes);
}

TEST_F(FormatsDoc, HasEveryFormatOnce) {
  std::vector<std::string> documented, built;
  for (const Row& row : rows) documented.push_back(row.at("format"));
  for (const Row& row : decode_only) documented.push_back(row.at("format"));
  for (const Format& format : decoders()) built.emplace_back(format.name);
  EXPECT_EQ(documented, built);
}

TEST_F(FormatsDoc, NumbersAreTheCodes) {
  for (const Row& row : rows) expect_numbers(row, find_format(row.at("format")));
  for (const Row& row : decode_only) {
    const GgmlTypeInfo* type = find_ggml_type(std::string_view(row.at("format")));
    ASSERT_NE(type, nullptr);
    const Format* format = find_decoder(type->type);
    expect_numbers(row, format);
    EXPECT_EQ(row.at("instead"), type_name(format->nearest));
  }
}

TEST_F(FormatsDoc, ScalesTakeTheBitsThatItSays) {
  for (const Row& row : rows) {
    int64_t bytes = 0;
    for (const Field& field : fields_of(row)) {
      const bool holds_codes =
          field.name.starts_with('q') || field.name == "hmask" || field.name == "w";
      if (!holds_codes) bytes += field.bytes;
    }
    const double weights = std::stod(row.at("weights"));
    EXPECT_EQ(row.at("of these scales"), concat(8.0 * static_cast<double>(bytes) / weights))
        << row.at("format");
  }
}

TEST_F(FormatsDoc, AnImatrixCountsForTheMethodsThatItSays) {
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  std::vector<float> weights(1024), importance(weights.size());
  for (float& x : weights) x = normal(random);
  for (float& x : importance) x = std::exp(2.0f * normal(random));
  for (const Row& row : rows) {
    const Format* format = find_format(row.at("format"));
    ASSERT_NE(format, nullptr);
    const auto encoded = [&](EncodeMethod method, const float* weighted_by) {
      const auto length = static_cast<int64_t>(weights.size());
      std::vector<std::byte> blocks(length / format->block_size * format->block_bytes);
      format->encode(weights.data(), weighted_by, blocks.data(), length, method);
      return blocks;
    };
    std::string methods;
    for (const auto& [name, method] : {std::pair{"ggml", EncodeMethod::kGgml},
                                       {"rtn", EncodeMethod::kRtn},
                                       {"search", EncodeMethod::kSearch}}) {
      if (encoded(method, nullptr) != encoded(method, importance.data()))
        methods += (methods.empty() ? "" : ", ") + std::string(name);
    }
    EXPECT_EQ(row.at("imatrix"), methods) << row.at("format");
  }
}

TEST_F(FormatsDoc, EveryFormatWasMeasured) {
  std::vector<std::string> measured, built;
  for (const Row& row : read_table("## Measured")) {
    measured.push_back(row.at("format"));
    for (const char* method : {"ggml", "rtn"})
      EXPECT_LE(std::stod(row.at("search")), std::stod(row.at(method))) << row.at("format");
  }
  for (const Format& format : formats()) built.emplace_back(format.name);
  EXPECT_EQ(measured, built);
}

TEST_F(FormatsDoc, ScalesLieWhereItSays) {
  for (const Row& row : rows) {
    SCOPED_TRACE(row.at("format"));
    const Format* format = find_format(row.at("format"));
    ASSERT_NE(format, nullptr);
    const std::vector<std::string> names = scales_of(row);
    if (format->has_byte_scales) {
      EXPECT_TRUE(names.empty());
      continue;
    }
    ASSERT_EQ(static_cast<int>(names.size()), format->num_scales);
    std::vector<std::byte> block(format->block_bytes);
    // At most 15, Q2_K's largest.
    const auto value_of = [](size_t i) { return 2.0f + static_cast<float>(i % 14); };
    for (size_t i = 0; i < names.size(); ++i)
      store(block, fields_of(row), names[i], value_of(i),
            std::count(names.begin(), names.begin() + static_cast<int64_t>(i), names[i]));
    std::vector<float> scales(names.size());
    format->scales_of(block.data(), scales.data(), 1);
    for (size_t i = 0; i < names.size(); ++i) EXPECT_EQ(scales[i], value_of(i)) << names[i];
  }
}

/// The numbers that the text below the table gives for bytes of these scales.
TEST_F(FormatsDoc, ByteScalesAreTheNumbersThatItSays) {
  for (int byte = 0; byte < 255; ++byte) {
    const std::vector<std::byte> mx(17, static_cast<std::byte>(byte));
    float d[4];
    find_format("MXFP4")->scales_of(mx.data(), d, 1);
    EXPECT_EQ(d[0], std::ldexp(1.0, byte - 128)) << byte;
    const int exponent = byte >> 3 & 15, fraction = byte & 7;
    const double number =
        exponent ? std::ldexp(8 + fraction, exponent - 10) : std::ldexp(fraction, -9);
    const std::vector<std::byte> nv(36, static_cast<std::byte>(byte));
    find_format("NVFP4")->scales_of(nv.data(), d, 1);
    for (const float each : d) EXPECT_EQ(each, byte == 127 ? 0.0 : number / 2) << byte;
  }
}

/// A row's q's: "-8 to 7", or all of them.
std::set<float> levels_in(const std::string& text) {
  const std::vector<std::string> words = split(text, ' ');
  std::set<float> levels;
  if (words.size() == 3 && words[1] == "to") {
    for (int q = std::stoi(words[0]); q <= std::stoi(words[2]); ++q)
      levels.insert(static_cast<float>(q));
  } else {
    for (const std::string& word : words) levels.insert(std::stof(word));
  }
  return levels;
}

/// Makes all steps of a block with scale bytes 1.
void store_byte_scales(std::vector<std::byte>& block, const Format& format) {
  for (int j = 0; j < format.num_scales; ++j)
    block[j] = static_cast<std::byte>(format.type == GgmlType::kMXFP4 ? 128 : 0x40);
}

// Random codes under d = t = 1 (and m = 100 or dmin u = 100, to see that it counts): the decoded
// weights are the q's.
TEST_F(FormatsDoc, LevelsAreTheOnesThatDecode) {
  std::mt19937 random(1);
  for (const Row& row : rows) {
    SCOPED_TRACE(row.at("format"));
    const Format* format = find_format(row.at("format"));
    ASSERT_NE(format, nullptr);
    if (row.at("q").empty()) {
      EXPECT_EQ(format->num_scales, 0);
      continue;
    }
    const bool has_offset = row.at("weight") == "d q + m";
    const std::vector<std::string> names = scales_of(row);
    const auto num_t = std::count(names.begin(), names.end(), "t");
    const auto num_u = std::count(names.begin(), names.end(), "u");
    EXPECT_EQ(row.at("weight"), has_offset ? "d q + m"
                                : num_u    ? "d t q - dmin u"
                                : num_t    ? "d t q"
                                           : "d q");
    std::set<float> found;
    std::vector<std::byte> block(format->block_bytes);
    std::vector<float> weights(format->block_size);
    for (int round = 0; round < 1000; ++round) {
      for (std::byte& each : block) each = static_cast<std::byte>(random());
      if (format->has_byte_scales)
        store_byte_scales(block, *format);
      else
        store(block, fields_of(row), "d", 1.0f);
      store(block, fields_of(row), "m", 100.0f);
      for (int64_t t = 0; t < num_t; ++t) store(block, fields_of(row), "t", 1.0f, t);
      store(block, fields_of(row), "dmin", 100.0f);
      for (int64_t u = 0; u < num_u; ++u) store(block, fields_of(row), "u", 1.0f, u);
      format->decode(block.data(), weights.data(), 1);
      found.insert(weights.begin(), weights.end());
    }
    std::set<float> wanted;
    for (const float q : levels_in(row.at("q")))
      wanted.insert(q + (has_offset ? 100.0f : num_u ? -100.0f : 0.0f));
    EXPECT_EQ(found, wanted);
  }
}

}  // namespace
}  // namespace nibble
