"""Drafts tokens that a step verifies beside the one it computes anyway.

A step computes the rows of a draft with the sequence's next token. Each row is sampled as if there were no
draft, with the seed and the index of its own token, and the draft holds as far as its tokens are those that
were sampled. So the answer is the same token by token, greedy or drawn, whatever is drafted; a draft changes
how many tokens a step makes, and nothing else.
"""
