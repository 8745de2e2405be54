-- Windows hold stranded time, too: a family for each kind of stall.

ALTER TABLE windows COMMENT COLUMN IF EXISTS family 'queue, claim_to_start, run or total; or stranded. and a kind of stall: for how long jobs lay in it that left it in the window';
