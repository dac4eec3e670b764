"""How the bundled target and draft were trained and evaluated: data, tokenizer, training, evaluation, model cards."""
