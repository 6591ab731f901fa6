// The syntax tree of a chat template: expressions have a value, statements write text.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "model/chat/value.h"

namespace nibble::jinja {

/// Names that are visible at a place of the template; those set in a loop's or macro's body end
/// with it.
class Scope {
 public:
  explicit Scope(std::shared_ptr<const Scope> outer = nullptr) : outer_(std::move(outer)) {}
  /// Undefined where no scope has the name.
  Value find(const std::string& name) const;
  void set(const std::string& name, Value value) { names_[name] = std::move(value); }

 private:
  std::shared_ptr<const Scope> outer_;
  std::map<std::string, Value> names_;
};

/// What a rendering has used up: a template comes with a file that nobody has read.
struct Budget {
  int64_t steps = 5'000'000;        // nodes still to be evaluated, and items to be looped over
  int64_t characters = 64'000'000;  // still to be written
  int depth = 0;                    // of macros that call macros
};

struct Context {
  std::shared_ptr<Scope> scope;
  Budget* budget;
};

struct Expression {
  int line = 0;
  virtual ~Expression() = default;
  /// Throws Error with the line for what Jinja refuses, and for what this engine does not know.
  Value evaluate(Context& context) const;

 protected:
  virtual Value compute(Context& context) const = 0;
};
using ExpressionPointer = std::unique_ptr<Expression>;
using Expressions = std::vector<ExpressionPointer>;

struct Literal : Expression {
  Value value;
  Value compute(Context& context) const override;
};
struct Name : Expression {
  std::string name;
  Value compute(Context& context) const override;
};
struct ListLiteral : Expression {
  Expressions items;
  Value compute(Context& context) const override;
};
struct DictLiteral : Expression {
  std::vector<std::pair<ExpressionPointer, ExpressionPointer>> entries;
  Value compute(Context& context) const override;
};
/// object.name (`attribute`) or object[index].
struct Member : Expression {
  ExpressionPointer object, index;
  bool attribute = false;
  Value compute(Context& context) const override;
};
/// object[begin:end:step]; each may be absent.
struct Slice : Expression {
  ExpressionPointer object, begin, end, step;
  Value compute(Context& context) const override;
};
struct CallArguments {
  Expressions positional;
  std::vector<std::pair<std::string, ExpressionPointer>> named;
  Arguments evaluate(Context& context) const;
};
struct Call : Expression {
  ExpressionPointer function;
  CallArguments arguments;
  Value compute(Context& context) const override;
};
/// value | name(arguments)
struct Filter : Expression {
  ExpressionPointer value;
  std::string name;
  CallArguments arguments;
  Value compute(Context& context) const override;
};
/// value is [not] name(arguments)
struct Test : Expression {
  ExpressionPointer value;
  std::string name;
  CallArguments arguments;
  bool negated = false;
  Value compute(Context& context) const override;
};
/// "-", "+", "not"
struct Unary : Expression {
  std::string name;
  ExpressionPointer operand;
  Value compute(Context& context) const override;
};
/// Arithmetic, "~", "and", "or".
struct Binary : Expression {
  std::string name;
  ExpressionPointer left, right;
  Value compute(Context& context) const override;
};
/// first < second <= third ...: "not in" is one name.
struct Comparison : Expression {
  ExpressionPointer first;
  std::vector<std::pair<std::string, ExpressionPointer>> rest;
  Value compute(Context& context) const override;
};
/// then if condition else otherwise; nothing where `otherwise` is absent.
struct Conditional : Expression {
  ExpressionPointer condition, then, otherwise;
  Value compute(Context& context) const override;
};

/// What a statement leaves undone of those around it.
enum class Flow { kNext, kBreak, kContinue };

struct Statement {
  int line = 0;
  virtual ~Statement() = default;
  virtual Flow run(Context& context, std::string& out) const = 0;
};
using Statements = std::vector<std::unique_ptr<Statement>>;
Flow run_all(const Statements& statements, Context& context, std::string& out);

struct Text : Statement {
  std::string text;
  Flow run(Context& context, std::string& out) const override;
};
struct Print : Statement {
  ExpressionPointer value;
  Flow run(Context& context, std::string& out) const override;
};
struct If : Statement {
  ExpressionPointer condition;
  Statements then, otherwise;
  Flow run(Context& context, std::string& out) const override;
};
struct For : Statement {
  std::vector<std::string> targets;
  ExpressionPointer items, condition;  // condition: absent, or which items are taken
  Statements body, otherwise;
  Flow run(Context& context, std::string& out) const override;

 private:
  void bind(const Value& item, Scope& scope) const;
};
/// {% set target = value %}, or {% set target %}body{% endset %} where value is absent.
struct Set : Statement {
  std::vector<std::string> targets;
  std::string attribute;  // of a namespace, or ""
  ExpressionPointer value;
  Statements body;
  Flow run(Context& context, std::string& out) const override;
};
struct Parameter {
  std::string name;
  ExpressionPointer otherwise;  // absent: it has no default
};
struct Macro : Statement {
  std::string name;
  std::vector<Parameter> parameters;
  Statements body;
  Flow run(Context& context, std::string& out) const override;

 private:
  Value call(const Arguments& arguments, const Context& at_definition) const;
};
/// {% generation %}...{% endgeneration %}, transformers' mark of what an assistant writes, and {%
/// with %} without names.
struct Group : Statement {
  Statements body;
  Flow run(Context& context, std::string& out) const override;
};
struct Jump : Statement {
  Flow flow = Flow::kBreak;
  Flow run(Context& context, std::string& out) const override;
};

}  // namespace nibble::jinja
