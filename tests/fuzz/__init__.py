"""Every reader of a file that somebody else may have made: damaged input ends in a result or in a MapetError, soon."""
