//! When a certificate is valid: its dates, read from its DER.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The tags of DER that stand in front of the dates, and those of the dates.
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

const DAY: u64 = 86_400;

/// What is wrong with the dates of a certificate now. `None` if it is valid, or has no dates that can be read: clients
/// judge it in any case.
pub(crate) fn problem(certificate: &[u8], now: SystemTime) -> Option<String> {
    let [from, until] = dates(certificate)?;
    let now = date(now);
    if now < from {
        return Some(format!("is not valid before {}", shown(&from)));
    }
    (now > until).then(|| format!("has expired at {}", shown(&until)))
}

/// The first and the last second of validity, as YYYYMMDDHHMMSS in UTC.
fn dates(certificate: &[u8]) -> Option<[String; 2]> {
    let (certificate, _) = value(certificate, SEQUENCE)?;
    let (mut rest, _) = value(certificate, SEQUENCE)?;
    if rest.first() == Some(&VERSION) {
        rest = value(rest, VERSION)?.1;
    }
    // The serial number, the algorithm of the signature, and the issuer.
    for tag in [INTEGER, SEQUENCE, SEQUENCE] {
        rest = value(rest, tag)?.1;
    }
    let (validity, _) = value(rest, SEQUENCE)?;
    let (from, validity) = time(validity)?;
    let (until, _) = time(validity)?;
    Some([from, until])
}

/// The value with this tag at the beginning, and what is behind it.
fn value(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&[found, first], rest) = der.split_first_chunk::<2>()?;
    if found != tag {
        return None;
    }
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x83 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            let length = bytes.iter().fold(0, |length, &byte| length << 8 | usize::from(byte));
            (length, rest)
        }
        _ => return None,
    };
    rest.split_at_checked(length)
}

/// A date, with four digits for the year, and what is behind it.
fn time(der: &[u8]) -> Option<(String, &[u8])> {
    let tag = *der.first()?;
    let (text, rest) = value(der, tag)?;
    let digits = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let is_number = digits.bytes().all(|digit| digit.is_ascii_digit());
    let date = match (tag, digits.len()) {
        // Two digits stand for the years 1950 to 2049.
        (UTC_TIME, 12) => format!("{}{digits}", if digits < "50" { "20" } else { "19" }),
        (GENERALIZED_TIME, 14) => digits.to_owned(),
        _ => return None,
    };
    is_number.then_some((date, rest))
}

/// A time as YYYYMMDDHHMMSS in UTC.
fn date(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    let (days, second) = (seconds / DAY, seconds % DAY);
    // Years begin in March here, so that a leap day is the last one. 400 of them have 146,097 days.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let year = era * 400 + year + u64::from(month >= 10);
    let month = if month < 10 { month + 3 } else { month - 9 };
    let (hour, minute) = (second / 3_600, second / 60 % 60);
    format!("{year:04}{month:02}{day:02}{hour:02}{minute:02}{:02}", second % 60)
}

/// A date for people.
fn shown(date: &str) -> String {
    let part = |from, to| date.get(from..to).unwrap_or_default();
    let (day, time) = ((part(0, 4), part(4, 6), part(6, 8)), (part(8, 10), part(10, 12)));
    format!("{}-{}-{} {}:{} UTC", day.0, day.1, day.2, time.0, time.1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "19700101000000"),
            (951_782_399, "20000228235959"),
            (951_782_400, "20000229000000"),
            (951_868_800, "20000301000000"),
            (1_704_067_199, "20231231235959"),
            (4_107_542_400, "21000301000000"),
        ] {
            assert_eq!(date(at(seconds)), expected);
        }
    }

    #[test]
    fn a_certificate_is_valid_from_its_first_date_to_its_last() {
        for (last, is_generalized) in [(2030, false), (2060, true)] {
            let mut params = CertificateParams::new(vec!["a".to_owned()]).unwrap();
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(last, 1, 1);
            let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
            let problem = |seconds| problem(certificate.der(), at(seconds));
            // The first second of 2020.
            assert_eq!(problem(1_577_836_799).unwrap(), "is not valid before 2020-01-01 00:00 UTC");
            assert_eq!(problem(1_577_836_800), None);
            // 2040.
            let expired = problem(2_208_988_800);
            let expected = "has expired at 2030-01-01 00:00 UTC".to_owned();
            assert_eq!(expired, (!is_generalized).then_some(expected));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..64), cut in 0..64_usize) {
            let _ = dates(&bytes);
            let mut nested = vec![SEQUENCE, 0x82, 0, 40, SEQUENCE, 30, INTEGER, 1, 1, SEQUENCE, 0, SEQUENCE, 0, SEQUENCE];
            nested.extend(bytes);
            nested.truncate(cut);
            let _ = dates(&nested);
        }
    }
}
