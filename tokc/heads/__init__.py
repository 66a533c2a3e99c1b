"""Trains the heads that draft tokens: prompts, the model's own answers to them, its features, torch.

What a head learns to predict is the artifact that will be served: the text is what it answers, the features
are what its compiled kernels compute. Only `modules`, `objective` and `training` import torch.
"""
