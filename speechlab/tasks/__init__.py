"""One module a task: joins model, data, loss and judgement; what a trainer and a decoder call."""
