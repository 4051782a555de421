"""`python -m clipfleet.workers.planner`: a planner process."""

from clipfleet.workers.planner.planner import main

if __name__ == "__main__":
    main()
