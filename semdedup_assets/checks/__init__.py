"""What must hold of results, by what the stages measured while they had them in hand.

A check looks at all partitions that are there, whichever run made them. Results of other settings, or of inputs that
have changed since, are stale and not wrong: only `up_to_date` looks at those.
"""
