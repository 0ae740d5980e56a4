"""Text from a decoder, token by token, for one sequence or several at once.

LanguageModel opens a model folder; Engine feeds it and gives out what each sequence got.
"""
