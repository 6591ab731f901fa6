#include "model/chat/nodes.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "model/chat/builtins.h"

namespace nibble::jinja {
namespace {

/// Nodes in nodes, macros' included: each takes some hundred bytes of the stack.
constexpr int kMaxDepth = 1000;
/// Of one text, and items of one list.
constexpr size_t kMaxCharacters = 16'000'000, kMaxItems = 1'000'000;

/// The value where it is no name without a value, which only tests and a few filters take.
const Value& defined(const Value& value) {
  if (value.is_undefined()) fail('\'', value.undefined().name, "' is undefined");
  return value;
}

/// Runs with the line in front of the error's message, unless an inner one is there already.
template <class Body>
auto at_line(int line, const Body& body) {
  try {
    return body();
  } catch (const Error& error) {
    const std::string message = error.what();
    if (message.starts_with("line ")) throw;
    fail("line ", line, ": ", message);
  }
}

/// A node that is being evaluated.
class Step {
 public:
  explicit Step(Budget& budget) : budget_(budget) {
    check(--budget.steps >= 0, "the template runs too long");
    check(budget.depth < kMaxDepth, "the template is nested too deep");
    ++budget_.depth;
  }
  ~Step() { --budget_.depth; }

 private:
  Budget& budget_;
};

void write(Context& context, const std::string& text, std::string& out) {
  context.budget->characters -= static_cast<int64_t>(text.size());
  if (context.budget->characters < 0) fail("the template writes too much");
  out += text;
}

Value index_list(const List& list, int64_t index) {
  const auto size = static_cast<int64_t>(list.size());
  if (index < 0) index += size;
  if (index < 0 || index >= size) return {};
  return list[static_cast<size_t>(index)];
}

/// object[index]; what is not there is undefined.
Value subscript(const Value& object, const Value& index) {
  if (index.is_int() || index.is_bool()) {
    if (object.is_list()) return index_list(object.list(), index.integer());
    if (object.is_string()) return index_list(items_of(object), index.integer());
  }
  if (!index.is_string()) return {};
  if (const Value* member = object.member(index.string())) return *member;
  return {};
}

Value member_of(const Value& object, const Value& index, bool attribute) {
  defined(object);
  Value found;
  if (attribute) found = find_method(object, index.text());
  if (found.is_undefined()) found = subscript(object, index);
  if (found.is_undefined() && !attribute && index.is_string())
    found = find_method(object, index.text());
  if (found.is_undefined()) return Undefined{index.text()};
  return found;
}

/// The bounds that Python's slices give for a step: where to start and how many to take.
struct Range {
  int64_t begin, count;
};
Range slice_range(int64_t size, std::optional<int64_t> begin, std::optional<int64_t> end,
                  int64_t step) {
  if (step > 0) {
    const int64_t from = clamp_index(begin.value_or(0), size),
                  to = clamp_index(end.value_or(size), size);
    return {from, from < to ? (to - from - 1) / step + 1 : 0};
  }
  const auto bound = [&](int64_t index) {
    return std::min(clamp_index(index, size, -1), size - 1);
  };
  const int64_t from = begin ? bound(*begin) : size - 1, to = end ? bound(*end) : -1;
  // -(step + 1) + 1: the smallest integer has no opposite.
  return {from, from > to ? (from - to - 1) / (-(step + 1) + 1) + 1 : 0};
}

Value power(const Value& a, const Value& b) {
  const double result = std::pow(a.number(), b.number());
  const bool whole = !a.is_float() && !b.is_float() && b.integer() >= 0;
  if (!whole) return result;
  check(std::abs(result) < 9e15, "the result of ** is too large");
  return static_cast<int64_t>(result);
}

int64_t floor_divide(int64_t a, int64_t b) {
  check(b != -1 || a != INT64_MIN, "the result of // is too large");
  return a / b - (a % b != 0 && (a < 0) != (b < 0));
}

Value divide(const std::string& name, const Value& a, const Value& b) {
  check(b.number() != 0, "division by zero");
  if (name == "/") return a.number() / b.number();
  if (a.is_float() || b.is_float()) {
    const double quotient = std::floor(a.number() / b.number());
    return name == "//" ? quotient : a.number() - quotient * b.number();
  }
  const int64_t quotient = floor_divide(a.integer(), b.integer());
  return name == "//" ? quotient : a.integer() - quotient * b.integer();
}

Value calculate(const std::string& name, const Value& a, const Value& b) {
  if (name == "**") return power(a, b);
  if (name == "/" || name == "//" || name == "%") return divide(name, a, b);
  if (a.is_float() || b.is_float())
    return name == "+"   ? a.number() + b.number()
           : name == "-" ? a.number() - b.number()
                         : a.number() * b.number();
  int64_t result = 0;
  const bool overflows = name == "+"   ? __builtin_add_overflow(a.integer(), b.integer(), &result)
                         : name == "-" ? __builtin_sub_overflow(a.integer(), b.integer(), &result)
                                       : __builtin_mul_overflow(a.integer(), b.integer(), &result);
  check(!overflows, "the result of ", name, " is too large");
  return result;
}

std::string joined(std::string a, const std::string& b) {
  check(a.size() + b.size() <= kMaxCharacters, "the text is too long");
  return a += b;
}

/// "text" * 3
Value repeat(const std::string& text, int64_t count) {
  if (text.empty() || count <= 0) return "";
  check(static_cast<size_t>(count) <= kMaxCharacters / text.size(), "the text is too long");
  std::string out;
  for (int64_t i = 0; i < count; ++i) out += text;
  return out;
}

Value combine(const std::string& name, const Value& a, const Value& b) {
  if (name == "~") return joined(a.text(), b.text());
  defined(a), defined(b);
  if (a.is_number() && b.is_number()) return calculate(name, a, b);
  if (name == "+" && a.is_string() && b.is_string()) return joined(a.string(), b.string());
  if (name == "+" && a.is_list() && b.is_list()) {
    List items = a.list();
    check(items.size() + b.list().size() <= kMaxItems, "the list is too long");
    items.insert(items.end(), b.list().begin(), b.list().end());
    return items;
  }
  if (name == "*" && a.is_string() && b.is_int()) return repeat(a.string(), b.integer());
  if (name == "*" && a.is_int() && b.is_string()) return repeat(b.string(), a.integer());
  fail("'", name, "' is not for ", a.type_name(), " and ", b.type_name());
}

bool contains(const Value& container, const Value& item) {
  if (container.is_string()) {
    check(item.is_string(), "'in' a string wants a string, found ", item.type_name());
    return container.string().find(item.string()) != std::string::npos;
  }
  if (container.is_dict()) return item.is_string() && container.member(item.string());
  const List items = items_of(container);
  return std::any_of(items.begin(), items.end(),
                     [&](const Value& each) { return equal(each, item); });
}

bool compare(const std::string& name, const Value& a, const Value& b) {
  if (name == "==") return equal(a, b);
  if (name == "!=") return !equal(a, b);
  if (name == "in") return contains(b, a);
  if (name == "not in") return !contains(b, a);
  defined(a), defined(b);
  if (name == "<") return less(a, b);
  if (name == ">") return less(b, a);
  if (name == "<=") return less(a, b) || equal(a, b);
  return less(b, a) || equal(a, b);
}

/// What `loop` is in a loop's body.
Value loop_state(const List& items, size_t index) {
  const auto at = static_cast<int64_t>(index), size = static_cast<int64_t>(items.size());
  return Dict{{"index", at + 1},
              {"index0", at},
              {"revindex", size - at},
              {"revindex0", size - at - 1},
              {"first", at == 0},
              {"last", at + 1 == size},
              {"length", size},
              {"previtem", at > 0 ? items[index - 1] : Value(Undefined{"previtem"})},
              {"nextitem", at + 1 < size ? items[index + 1] : Value(Undefined{"nextitem"})},
              {"cycle", Function([at](const Arguments& arguments) {
                 check(!arguments.positional.empty(), "loop.cycle() wants values");
                 return arguments.positional[static_cast<size_t>(at) % arguments.positional.size()];
               })}};
}

/// A name, or one name for each item of the value.
void bind_names(const std::vector<std::string>& names, const Value& value, Scope& scope) {
  if (names.size() == 1) return scope.set(names[0], value);
  const List items = items_of(value);
  check(items.size() == names.size(), names.size(), " names want as many values, found ",
        items.size());
  for (size_t i = 0; i < names.size(); ++i) scope.set(names[i], items[i]);
}

}  // namespace

Value Scope::find(const std::string& name) const {
  for (const Scope* scope = this; scope; scope = scope->outer_.get())
    if (const auto found = scope->names_.find(name); found != scope->names_.end())
      return found->second;
  return Undefined{name};
}

Value Expression::evaluate(Context& context) const {
  return at_line(line, [&] {
    const Step step(*context.budget);
    return compute(context);
  });
}

Value Literal::compute(Context&) const { return value; }

Value Name::compute(Context& context) const {
  Value found = context.scope->find(name);
  if (!found.is_undefined()) return found;
  Value global = find_global(name);
  return global.is_undefined() ? found : global;
}

Value ListLiteral::compute(Context& context) const {
  List values;
  for (const ExpressionPointer& item : items) values.push_back(item->evaluate(context));
  return values;
}

Value DictLiteral::compute(Context& context) const {
  Dict values;
  for (const auto& [key, value] : entries) {
    const Value name = key->evaluate(context);
    check(name.is_string(), "a key wants a string, found ", name.type_name());
    set_member(values, name.string(), value->evaluate(context));
  }
  return values;
}

Value Member::compute(Context& context) const {
  const Value whole = object->evaluate(context);
  return member_of(whole, index->evaluate(context), attribute);
}

Value Slice::compute(Context& context) const {
  const auto bound = [&](const ExpressionPointer& part) -> std::optional<int64_t> {
    if (!part) return std::nullopt;
    const Value value = part->evaluate(context);
    if (value.is_none()) return std::nullopt;
    check(value.is_int() || value.is_bool(), "a slice wants integers, found ", value.type_name());
    return value.integer();
  };
  const Value whole = object->evaluate(context);
  check(defined(whole).is_list() || whole.is_string(), whole.type_name(), " cannot be sliced");
  const List items = items_of(whole);
  const int64_t by = bound(step).value_or(1);
  check(by != 0, "a slice's step is 0");
  const Range range = slice_range(static_cast<int64_t>(items.size()), bound(begin), bound(end), by);
  List taken;
  for (int64_t i = 0; i < range.count; ++i)
    taken.push_back(items[static_cast<size_t>(range.begin + i * by)]);
  if (whole.is_list()) return taken;
  std::string text;
  for (const Value& character : taken) text += character.string();
  return text;
}

Arguments CallArguments::evaluate(Context& context) const {
  Arguments arguments;
  for (const ExpressionPointer& value : positional)
    arguments.positional.push_back(value->evaluate(context));
  for (const auto& [name, value] : named)
    arguments.named.emplace_back(name, value->evaluate(context));
  return arguments;
}

Value Call::compute(Context& context) const {
  const Value called = function->evaluate(context);
  check(defined(called).is_function(), called.type_name(), " cannot be called");
  return called.function()(arguments.evaluate(context));
}

Value Filter::compute(Context& context) const {
  const Value filtered = value->evaluate(context);
  return apply_filter(name, filtered, arguments.evaluate(context));
}

Value Test::compute(Context& context) const {
  const Value tested = value->evaluate(context);
  return apply_test(name, tested, arguments.evaluate(context)) != negated;
}

Value Unary::compute(Context& context) const {
  const Value value = operand->evaluate(context);
  if (name == "not") return !value.truth();
  check(defined(value).is_number(), "'", name, "' is not for ", value.type_name());
  if (name == "+") return value;
  return value.is_float() ? Value(-value.number()) : calculate("-", int64_t{0}, value);
}

Value Binary::compute(Context& context) const {
  const Value first = left->evaluate(context);
  if (name == "and") return first.truth() ? right->evaluate(context) : first;
  if (name == "or") return first.truth() ? first : right->evaluate(context);
  return combine(name, first, right->evaluate(context));
}

Value Comparison::compute(Context& context) const {
  Value left = first->evaluate(context);
  for (const auto& [name, next] : rest) {
    Value right = next->evaluate(context);
    if (!compare(name, left, right)) return false;
    left = std::move(right);
  }
  return true;
}

Value Conditional::compute(Context& context) const {
  if (condition->evaluate(context).truth()) return then->evaluate(context);
  return otherwise ? otherwise->evaluate(context) : Value();
}

Flow run_all(const Statements& statements, Context& context, std::string& out) {
  for (const auto& statement : statements) {
    const Flow flow = at_line(statement->line, [&] {
      const Step step(*context.budget);
      return statement->run(context, out);
    });
    if (flow != Flow::kNext) return flow;
  }
  return Flow::kNext;
}

Flow Text::run(Context& context, std::string& out) const {
  write(context, text, out);
  return Flow::kNext;
}

Flow Print::run(Context& context, std::string& out) const {
  write(context, value->evaluate(context).text(), out);
  return Flow::kNext;
}

Flow If::run(Context& context, std::string& out) const {
  return run_all(condition->evaluate(context).truth() ? then : otherwise, context, out);
}

void For::bind(const Value& item, Scope& scope) const { bind_names(targets, item, scope); }

Flow For::run(Context& context, std::string& out) const {
  List taken;
  for (Value& item : items_of(items->evaluate(context))) {
    const Step step(*context.budget);
    if (condition) {
      Context inner = {std::make_shared<Scope>(context.scope), context.budget};
      bind(item, *inner.scope);
      if (!condition->evaluate(inner).truth()) continue;
    }
    taken.push_back(std::move(item));
  }
  if (taken.empty()) return run_all(otherwise, context, out);
  for (size_t i = 0; i < taken.size(); ++i) {
    const Step step(*context.budget);
    Context inner = {std::make_shared<Scope>(context.scope), context.budget};
    inner.scope->set("loop", loop_state(taken, i));
    bind(taken[i], *inner.scope);
    if (run_all(body, inner, out) == Flow::kBreak) break;
  }
  return Flow::kNext;
}

Flow Set::run(Context& context, std::string&) const {
  Value result;
  if (value) {
    result = value->evaluate(context);
  } else {
    Context inner = {std::make_shared<Scope>(context.scope), context.budget};
    std::string text;
    run_all(body, inner, text);
    result = std::move(text);
  }
  if (attribute.empty()) {
    bind_names(targets, result, *context.scope);
    return Flow::kNext;
  }
  const Value space = context.scope->find(targets[0]);
  check(space.is_namespace(), "'", targets[0], "' is no namespace: its attributes cannot be set");
  set_member(space.space().members, attribute, std::move(result));
  return Flow::kNext;
}

Flow Macro::run(Context& context, std::string&) const {
  // Weak, as the scope holds the function; the template's nodes outlive every rendering.
  const std::weak_ptr<Scope> scope = context.scope;
  Budget* budget = context.budget;
  context.scope->set(name, Function([this, scope, budget](const Arguments& arguments) {
                       return call(arguments, {scope.lock(), budget});
                     }));
  return Flow::kNext;
}

Value Macro::call(const Arguments& arguments, const Context& at_definition) const {
  Context inner = {std::make_shared<Scope>(at_definition.scope), at_definition.budget};
  check(arguments.positional.size() <= parameters.size(), name, "() takes ", parameters.size(),
        " arguments, found ", arguments.positional.size());
  for (const auto& [given, value] : arguments.named)
    check(std::any_of(parameters.begin(), parameters.end(),
                      [&](const Parameter& p) { return p.name == given; }),
          name, "() has no parameter '", given, "'");
  for (size_t i = 0; i < parameters.size(); ++i) {
    const auto& [parameter, otherwise] = parameters[i];
    const auto named = std::find_if(arguments.named.begin(), arguments.named.end(),
                                    [&](const auto& given) { return given.first == parameter; });
    if (i < arguments.positional.size())
      inner.scope->set(parameter, arguments.positional[i]);
    else if (named != arguments.named.end())
      inner.scope->set(parameter, named->second);
    else
      inner.scope->set(parameter,
                       otherwise ? otherwise->evaluate(inner) : Value(Undefined{parameter}));
  }
  std::string out;
  run_all(body, inner, out);
  return out;
}

Flow Group::run(Context& context, std::string& out) const { return run_all(body, context, out); }

Flow Jump::run(Context&, std::string&) const { return flow; }

}  // namespace nibble::jinja
