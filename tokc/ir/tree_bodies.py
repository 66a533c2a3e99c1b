"""What a token of a tree sees of its sequence's cache, in ONNX's text syntax."""

TREE_NODES = 32  # of a sequence's tree, besides the token that it grows from: bits of `ancestors`


def past_of_tree() -> str:
    """Spell `past` [tokens, every] and `place` [tokens, every], the position of what an entry holds.

    A token with n ancestors sees the entries before its tree, which begins at entry ``position - n``, those
    of its ancestors, bit i of `ancestors` being entry i of the tree, and its own. Ancestors lie in the order
    of their depth, so the position of one is the tree's begin and how many of them lie before it.
    """
    powers = ", ".join(str(1 << bit) for bit in range(TREE_NODES))
    return f"""
        powers = Constant<value_ints=[{powers}]>()
        mask_column = Unsqueeze(ancestors, axis)
        bits = BitwiseAnd(mask_column, powers)
        not_set = Equal(bits, zero)
        set = Not(not_set)
        counted = Cast<to=7>(set)
        depth = ReduceSum<keepdims=1>(counted, axis)
        begin = Sub(own, depth)
        offset = Sub(index, begin)
        last_node = Constant<value_int={TREE_NODES - 1}>()
        node = Clip(offset, zero, last_node)
        in_tree = Equal(node, offset)
        marked_count = GatherElements<axis=1>(counted, node)
        marked = Cast<to=9>(marked_count)
        ancestor = And(in_tree, marked)
        before = Less(index, begin)
        entry_column = Unsqueeze(entries, axis)
        itself = Equal(index, entry_column)
        above = Or(before, ancestor)
        past = Or(above, itself)
        rank = CumSum<exclusive=1>(counted, one)
        rank_here = GatherElements<axis=1>(rank, node)
        ancestor_place = Add(begin, rank_here)
        tree_place = Where(itself, own, ancestor_place)
        place = Where(before, index, tree_place)"""
