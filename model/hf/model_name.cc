#include "model/hf/model_name.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <regex>
#include <set>
#include <utility>
#include <vector>

namespace nibble {
namespace {

bool matches(const std::string& text, const char* pattern) {
  return std::regex_match(text, std::regex(pattern, std::regex::icase));
}
bool is_digit(char c) { return std::isdigit(static_cast<unsigned char>(c)) != 0; }
bool is_alpha(char c) { return std::isalpha(static_cast<unsigned char>(c)) != 0; }
char to_upper(char c) { return static_cast<char>(std::toupper(static_cast<unsigned char>(c))); }
char to_lower(char c) { return static_cast<char>(std::tolower(static_cast<unsigned char>(c))); }

std::vector<std::string> split(const std::string& text, char at) {
  std::vector<std::string> parts(1);
  for (const char c : text) {
    if (c == at)
      parts.emplace_back();
    else
      parts.back() += c;
  }
  std::erase(parts, "");
  return parts;
}

std::string join(const std::vector<std::string>& parts, char between) {
  std::string text;
  for (const std::string& part : parts)
    text += (text.empty() ? "" : std::string(1, between)) + part;
  return text;
}

/// "smollm2 instruct" -> "Smollm2 Instruct"; versions, and words with capitals, stay as they are.
std::string title(std::string name) {
  std::replace(name.begin(), name.end(), '-', ' ');
  std::vector<std::string> words = split(name, ' ');
  for (std::string& word : words) {
    const bool lower = std::any_of(word.begin(), word.end(), is_alpha) &&
                       std::none_of(word.begin(), word.end(),
                                    [](unsigned char c) { return std::isupper(c) != 0; });
    if (!lower || std::regex_match(word, std::regex(R"(v\d+(\.\d+)*|\d.*)"))) continue;
    for (size_t i = 0; i < word.size(); ++i)
      if (i == 0 || !is_alpha(word[i - 1])) word[i] = to_upper(word[i]);
  }
  return join(words, ' ');
}

enum class Kind { kBasename, kSizeLabel, kFinetune, kVersion, kType };

struct Part {
  std::string text;
  std::set<Kind> kinds;
  bool is(Kind kind) const { return kinds.count(kind) > 0; }
};

/// Whether a size as in "7B" is far from the model's: then it is rather a context length.
bool is_far(const std::string& size, int64_t num_parameters) {
  const std::string number = size.substr(0, size.size() - 1);
  char* end = nullptr;
  const double value = std::strtod(number.c_str(), &end);
  if (number.empty() || !is_digit(number[0]) || *end != '\0') return false;
  const double unit = std::pow(1000.0, static_cast<double>(std::string(" KMBT").find(size.back())));
  return std::abs(value * unit - static_cast<double>(num_parameters)) >
         static_cast<double>(7 * num_parameters / 8);
}

/// "7b" -> "7B", "7b1" -> "7.1B", "1_5B" -> "1.5B".
std::string normalized_size(std::string size) {
  std::replace(size.begin(), size.end(), '_', '.');
  if (is_digit(size.back()))
    size = size.substr(0, size.size() - 2) + '.' + size.back() + size[size.size() - 2];
  if (size.size() > 1 && is_digit(size[size.size() - 2])) size.back() = to_upper(size.back());
  return size;
}

void annotate(Part& part, bool first, int64_t num_parameters) {
  constexpr const char* kVersion = R"((v|iter)?\d+(\.\d+)*)";
  constexpr const char* kType = R"(i?q\d(_\w)*|b?fp?(16|32))";
  constexpr const char* kSize = R"((a|\d+x)?\d+([._]\d+)?[kmbt]\d?|small|mini|medium|large|x?xl)";
  if (matches(part.text, kVersion)) {
    part.kinds.insert(Kind::kVersion);
  } else if (matches(part.text, kType)) {
    part.kinds.insert(Kind::kType);
    std::transform(part.text.begin(), part.text.end(), part.text.begin(), to_upper);
  } else if (!first && matches(part.text, kSize)) {
    part.text = normalized_size(part.text);
    const bool context = is_far(part.text, num_parameters);
    if (context) part.text.back() = to_lower(part.text.back());
    part.kinds.insert(context ? Kind::kFinetune : Kind::kSizeLabel);
  } else if (!first && matches(part.text, "chat|instruct|vision|lora")) {
    part.kinds.insert(Kind::kFinetune);
  }
}

/// Words as "mini" are no size where a number is there too.
void drop_size_words(std::vector<Part>& parts) {
  const bool has_number = std::any_of(parts.begin(), parts.end(), [](const Part& part) {
    return part.is(Kind::kSizeLabel) && std::any_of(part.text.begin(), part.text.end(), is_digit);
  });
  for (Part& part : parts)
    if (has_number && std::all_of(part.text.begin(), part.text.end(), is_alpha))
      part.kinds.erase(Kind::kSizeLabel);
}

/// The words and versions at the start are the basename, but for versions at its end.
void find_basename(std::vector<Part>& parts) {
  bool at_start = true;
  for (Part& part : parts) {
    if (at_start && ((part.kinds.empty() && is_alpha(part.text[0])) || part.is(Kind::kVersion))) {
      part.kinds.insert(Kind::kBasename);
      continue;
    }
    at_start = false;
    if (part.kinds.empty()) part.kinds.insert(Kind::kFinetune);
  }
  for (size_t i = parts.size(); i-- > 0;) {
    if (!parts[i].is(Kind::kBasename) || parts[i].kinds.size() < 2) break;
    parts[i].kinds.erase(Kind::kBasename);
  }
}

std::string joined(const std::vector<Part>& parts, Kind kind, Kind but_not) {
  std::vector<std::string> texts;
  for (const Part& part : parts)
    if (part.is(kind) && (but_not == kind || !part.is(but_not))) texts.push_back(part.text);
  return join(texts, '-');
}

std::string joined_sizes(const std::vector<Part>& parts) {
  std::vector<std::string> texts;
  for (const Part& part : parts)
    if (part.is(Kind::kSizeLabel) &&
        std::find(texts.begin(), texts.end(), part.text) == texts.end())
      texts.push_back(part.text);
  return join(texts, '-');
}

}  // namespace

ModelName split_model_name(const std::string& id, int64_t num_parameters) {
  ModelName name;
  name.full = id;
  if (id.find(' ') != std::string::npos) return name;  // a name for people
  if (const size_t slash = id.find('/'); slash != std::string::npos) {
    name.organization = id.substr(0, slash);
    name.full = id.substr(slash + 1);
    if (name.organization.starts_with('.')) name.organization.clear();
  }
  std::vector<Part> parts;
  for (const std::string& text : split(name.full, '-')) {
    parts.push_back({text, {}});
    annotate(parts.back(), parts.size() == 1, num_parameters);
  }
  drop_size_words(parts);
  find_basename(parts);
  name.basename = joined(parts, Kind::kBasename, Kind::kBasename);
  name.size_label = joined_sizes(parts);
  name.finetune = joined(parts, Kind::kFinetune, Kind::kFinetune);
  name.version = joined(parts, Kind::kVersion, Kind::kBasename);
  if (name.size_label.empty() && name.finetune.empty() && name.version.empty())
    name.basename.clear();  // too ambiguous
  return name;
}

std::string size_label(int64_t num_parameters) {
  const auto count = static_cast<double>(num_parameters);
  const auto [scaled, suffix] = count > 1e12  ? std::pair(count * 1e-12, 'T')
                                : count > 1e9 ? std::pair(count * 1e-9, 'B')
                                : count > 1e6 ? std::pair(count * 1e-6, 'M')
                                              : std::pair(count * 1e-3, 'K');
  const double rounded = std::nearbyint(scaled);
  const int digits = rounded >= 10 ? 0 : rounded >= 1 ? 1 : 2;
  char text[32];
  std::snprintf(text, sizeof text, "%.*f%c", digits, scaled, suffix);
  return text;
}

GgufMetadata model_name_metadata(const std::string& name_or_path, const std::string& folder,
                                 int64_t num_parameters, const std::string& label) {
  ModelName name;
  const auto add = [&](const std::string& id) {
    const ModelName other = split_model_name(id, num_parameters);
    const auto fill = [](std::string& part, const std::string& with) {
      if (part.empty()) part = with;
    };
    fill(name.full, title(other.full));
    fill(name.organization, title(other.organization));
    fill(name.basename, other.basename);
    fill(name.finetune, other.finetune);
    fill(name.version, other.version);
    fill(name.size_label, other.size_label);
  };
  // More than one slash is a path of somebody's machine.
  if (!name_or_path.empty() && std::count(name_or_path.begin(), name_or_path.end(), '/') <= 1)
    add(name_or_path);
  add(folder);
  if (name.size_label.empty()) name.size_label = label;

  GgufMetadata metadata;
  const auto set = [&](const char* key, const std::string& value) {
    if (!value.empty()) metadata.set(std::string("general.") + key, value);
  };
  set("name", name.full);
  set("version", name.version);
  set("organization", name.organization);
  set("finetune", name.finetune);
  set("basename", name.basename);
  set("size_label", name.size_label);
  return metadata;
}

}  // namespace nibble
