cd {{folder}}
for attempt in $(seq {{restarts}}); do
    {{command}}
    code=$?
    case $code in 0 | 1 | 2) exit $code ;; esac # done, a bug, a mistake; otherwise a process was lost
    sleep 10
done
exit $code
