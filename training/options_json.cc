#include "training/options_json.h"

#include <nlohmann/json.hpp>

namespace nibble {

std::string options_json(const TrainOptions& o) {
  const nlohmann::ordered_json json = {{"data",
                                        {{"files", o.data.files},
                                         {"weights", o.data.weights},
                                         {"format", o.data.format},
                                         {"answers_only", o.data.answers_only},
                                         {"text_field", o.data.text_field},
                                         {"sequence_length", o.data.sequence_length},
                                         {"held_out", o.data.held_out},
                                         {"max_bytes", o.data.max_bytes}}},
                                       {"loss",
                                        {{"kind", o.loss.kind},
                                         {"ce_weight", o.loss.ce_weight},
                                         {"chunk_positions", o.loss.chunk_positions},
                                         {"load_balance", o.loss.load_balance}}},
                                       {"optimizer",
                                        {{"learning_rate", o.optimizer.learning_rate},
                                         {"scale_learning_rate", o.optimizer.scale_learning_rate},
                                         {"relative", o.optimizer.relative},
                                         {"weight_decay", o.optimizer.weight_decay},
                                         {"beta1", o.optimizer.beta1},
                                         {"beta2", o.optimizer.beta2},
                                         {"epsilon", o.optimizer.epsilon},
                                         {"clip_norm", o.optimizer.clip_norm},
                                         {"warmup", o.optimizer.warmup},
                                         {"final_ratio", o.optimizer.final_ratio}}},
                                       {"quant",
                                        {{"type", o.quant.type},
                                         {"scales", o.quant.scales},
                                         {"initial", o.quant.initial},
                                         {"calibration_tokens", o.quant.calibration_tokens},
                                         {"weights", o.quant.weights},
                                         {"lora_rank", o.quant.lora_rank},
                                         {"init_file", o.quant.init_file},
                                         {"estimator", o.quant.estimator},
                                         {"activations", o.quant.activations},
                                         {"frozen", o.quant.frozen}}},
                                       {"teacher", o.teacher},
                                       {"blockwise",
                                        {{"tokens", o.blockwise.tokens},
                                         {"epochs", o.blockwise.epochs},
                                         {"batch_tokens", o.blockwise.batch_tokens},
                                         {"learning_rate", o.blockwise.learning_rate},
                                         {"scale_learning_rate", o.blockwise.scale_learning_rate}}},
                                       {"batch_tokens", o.batch_tokens},
                                       {"micro_batch_tokens", o.micro_batch_tokens},
                                       {"max_tokens", o.max_tokens},
                                       {"max_minutes", o.max_minutes},
                                       {"evaluate_every", o.evaluate_every},
                                       {"early_stop", o.early_stop},
                                       {"checkpoint_every", o.checkpoint_every},
                                       {"dtype", o.dtype},
                                       {"activation_checkpointing", o.activation_checkpointing},
                                       {"seed", o.seed}};
  return json.dump();
}

}  // namespace nibble
